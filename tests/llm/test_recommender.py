from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import HeteroData
from transformers import AutoModel, DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.llm import LLMRecommender, Prompt, hellm
from hellm_pyg.nn import NeighborSmoothing
from tests.devices import DEVICES
from tests.llm.tiny import (
    KINDS,
    LORA,
    NUM_ITEMS,
    batch_of,
    recommender,
    tables,
    tiny_llm,
)
from tests.nn.models.lessons import assert_learns

HISTORIES = ([1, 2, 3, 4], [5], [6, 7])
SHAPES = [
    pytest.param(scope, prefix, id=f'{scope}-{name}')
    for scope in ('causal', 'user')
    for name, prefix in (
        ('plain', None),
        ('prefix', {}),
        ('lean', {'rank': 2, 'scale': 'sqrt_l2', 'gate': 'tanh'}),
        ('static', {'pool': False}),
        ('rotary', {'rotary': True}),
    )
]


def scores(model: LLMRecommender, batch: SequenceBatch) -> torch.Tensor:
    return model.score(model.encode(HeteroData()), batch)


def plain_states(model: LLMRecommender, history: list[int], after: bool):
    """The states of one row in one pass, by transformers alone."""
    token = model.projector(
        torch.cat([model.tables.weights[n][history] for n in ('graph', 'seq')], -1)
    )
    embed = model.backbone.get_input_embeddings()
    pieces = [embed(model.before), token] + ([embed(model.after)] if after else [])
    model.backbone.set_attn_implementation('eager')
    states = model.llm(inputs_embeds=torch.cat(pieces)[None]).last_hidden_state[0]
    model.backbone.set_attn_implementation('graph_prefix')
    return states


@pytest.mark.parametrize('kind', KINDS)
def test_causal_reads_the_items_of_a_plain_row(kind):
    model = recommender(kind)
    batch = batch_of(*HISTORIES, target=[0] * 7)
    out = model(batch)
    expected = [plain_states(model, row, after=False)[4:] for row in HISTORIES]
    torch.testing.assert_close(out, torch.cat(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_user_reads_the_end_of_a_plain_row(kind):
    model = recommender(kind, scope='user')
    out = model(batch_of(*HISTORIES))
    expected = [plain_states(model, row, after=True)[-1] for row in HISTORIES]
    torch.testing.assert_close(out, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('rotary', [False, True])
def test_user_prefix_equals_a_cache_in_front_of_the_row(kind, rotary):
    model = recommender(kind, {'rotary': rotary}, scope='user', lora=None)
    history = [3, 1, 4]
    x = model.tables.weights['graph'][history]
    turn = [part[0] for part in model.llm.rotary_emb(x, torch.arange(3)[None])]
    states = model.prefix(
        x[None], torch.ones(1, 3, dtype=torch.bool), tuple(turn) if rotary else None
    )
    cache = DynamicCache()
    for layer in model.llm.layers:
        attention, pair = layer.self_attn, []
        for projection, bias, state, norm in (
            (
                attention.k_proj,
                states.key_bias,
                states.key,
                model.prefix.key_norm,
            ),
            (
                attention.v_proj,
                states.value_bias,
                states.value,
                model.prefix.value_norm,
            ),
        ):
            slots = projection(norm(bias[attention.layer_idx] + state[0]))
            pair.append(slots.view(1, 3, 2, 4).transpose(1, 2))
        if rotary:
            pair[0] = apply_rotary_pos_emb(pair[0], pair[0], *turn, 0)[0]
        cache.update(*pair, attention.layer_idx)
    token = model.projector(model.tables(['graph', 'seq'], torch.tensor(history)))
    embed = model.llm.get_input_embeddings()
    row = torch.cat([embed(model.before), token, embed(model.after)])[None]
    model.llm.set_attn_implementation('eager')
    out = model.llm(inputs_embeds=row, past_key_values=cache).last_hidden_state
    model.llm.set_attn_implementation('graph_prefix')
    torch.testing.assert_close(
        model(batch_of(history)), out[:, -1], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    'prefix', [None, {}, {'scale': 'mean', 'gate': 'tanh'}, {'rotary': True}]
)
def test_causal_positions_equal_histories_of_their_own(kind, prefix):
    model = recommender(kind, prefix)
    batch = batch_of(*HISTORIES, target=[0] * 7)
    cut = [row[: t + 1] for row in HISTORIES for t in range(len(row))]
    torch.testing.assert_close(
        model.head(model(batch)), scores(model, batch_of(*cut)), rtol=1e-4, atol=1e-5
    )


def test_causal_prefix_equals_the_user_prefix_where_no_instruction_sees_it():
    # One item and no gate: the item's own slots are the same; only what the
    # instruction reads differs between the scopes.
    model = recommender(prefix={'pool': False})
    user = recommender(prefix={'pool': False}, scope='user')
    user.after = user.after[:0]
    torch.testing.assert_close(
        scores(model, batch_of(*HISTORIES)), scores(user, batch_of(*HISTORIES))
    )


@pytest.mark.parametrize(('scope', 'prefix'), SHAPES)
@settings(max_examples=8, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.integers(0, NUM_ITEMS - 1), max_size=6), min_size=1, max_size=5
    )
)
def test_scores_do_not_depend_on_mates_padding_or_bucket(scope, prefix, rows):
    model = recommender(scope=scope, prefix=prefix)
    encoded = model.encode(HeteroData())
    together = model.score(encoded, batch_of(*rows))
    alone = torch.cat([model.score(encoded, batch_of(row)) for row in rows])
    assert together.shape == (len(rows), NUM_ITEMS)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    sorted_ = model.score(encoded, batch_of(*[rows[i] for i in order]))
    torch.testing.assert_close(sorted_, together[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('scope', 'prefix'), SHAPES)
def test_scores_equal_the_head_of_the_training_forward(scope, prefix):
    model = recommender(scope=scope, prefix=prefix, head='tied', head_channels=5)
    batch = batch_of(*HISTORIES)
    expected = model.head(model(batch), model.tables(['graph', 'seq']))
    out = scores(model, batch)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('scope', 'prefix'), SHAPES)
@pytest.mark.parametrize('head', ['linear', 'tied', 'frozen_random'])
def test_nothing_trainable_is_unused_and_nothing_else_trains(scope, prefix, head):
    model = recommender(
        scope=scope, prefix=prefix, head=head, train_embeddings=['graph']
    ).train()
    target = [1] * (7 if scope == 'causal' else 3)
    model.loss(HeteroData(), batch_of(*HISTORIES, target=target)).backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith('llm.') and 'lora' not in name
        assert parameter.requires_grad == (not frozen and name != 'tables.weights.seq')
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize('scope', ['causal', 'user'])
def test_loss_is_the_mean_cross_entropy_over_targets(scope):
    model = recommender(scope=scope, prefix={}, head='tied')
    target = [3, 1, 4, 1, 5, 9, 2] if scope == 'causal' else [3, 1, 4]
    batch = batch_of(*HISTORIES, target=target)
    logits = model.head(model(batch), model.tables(['graph', 'seq']))
    expected = F.cross_entropy(logits, batch.target)
    torch.testing.assert_close(model.loss(HeteroData(), batch), expected)


@pytest.mark.parametrize('head', ['tied', 'linear'])
@pytest.mark.parametrize('scope', ['causal', 'user'])
def test_neighbors_share_the_weight_of_a_target(scope, head):
    neighbor = (torch.arange(NUM_ITEMS)[:, None] + torch.tensor([1, 5])) % NUM_ITEMS
    smoothing = NeighborSmoothing(neighbor, 0.4)
    model = recommender(scope=scope, prefix={}, head=head, smoothing=smoothing)
    target = [3, 1, 4, 1, 5, 9, 2] if scope == 'causal' else [3, 1, 4]
    batch = batch_of(*HISTORIES, target=target)
    logits = model.head(model(batch), model.tables(['graph', 'seq']))
    wanted = F.one_hot(batch.target, NUM_ITEMS) * 0.6
    wanted += F.one_hot(neighbor[batch.target], NUM_ITEMS).sum(1) * 0.2
    torch.testing.assert_close(
        model.loss(HeteroData(), batch), F.cross_entropy(logits, wanted)
    )
    assert 'neighbor' not in ''.join(model.state_dict())


@pytest.mark.parametrize('scope', ['causal', 'user'])
def test_queries_of_all_targets_at_once(scope):
    model = recommender(scope=scope, prefix={}, head='tied', max_len=3)
    rows = HISTORIES
    if scope == 'causal':
        rows = ([2], [2, 3], [2, 3, 4], [5], [6], [6, 7])
    target = [3, 1, 4, 1, 5, 9, 2] if scope == 'causal' else [3, 1, 4]
    encoded = model.encode(HeteroData())
    query = model.queries(encoded, batch_of(*HISTORIES, target=target))
    found = model.score_queries(encoded, query)
    torch.testing.assert_close(found, scores(model, batch_of(*rows)))


@pytest.mark.parametrize('smooth', [False, True])
@pytest.mark.parametrize('scope', ['causal', 'user'])
def test_a_teacher_shares_the_weight_of_a_target(scope, smooth):
    neighbor = (torch.arange(NUM_ITEMS)[:, None] + torch.tensor([1, 5])) % NUM_ITEMS
    smoothing = NeighborSmoothing(neighbor, 0.4) if smooth else None
    model = recommender(
        scope=scope, prefix={}, head='tied', smoothing=smoothing, max_len=3
    )
    target = [3, 1, 4, 1, 5, 9, 2] if scope == 'causal' else [3, 1, 4]
    batch = batch_of(*HISTORIES, target=target)
    rows = HISTORIES
    if scope == 'causal':  # the first position lies before the last 3 items
        rows = ([2], [2, 3], [2, 3, 4], [5], [6], [6, 7])
    assert_learns(
        lambda soft: model.loss(HeteroData(), batch, soft),
        scores(model, batch_of(*rows)),
        kept=[1, 2, 3, 4, 5, 6] if scope == 'causal' else None,
        num_targets=len(target),
    )


def test_smoothing_that_does_not_fit():
    neighbor = torch.zeros(NUM_ITEMS, 1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"'smoothing'.*set candidates='all'"):
        recommender(smoothing=NeighborSmoothing(neighbor), candidates='unseen')
    with pytest.raises(ValueError, match=r"'smoothing' needs neighbours of 20 items"):
        recommender(smoothing=NeighborSmoothing(neighbor[1:]))


@pytest.mark.parametrize('scope', ['causal', 'user'])
def test_seen_items_need_not_compete(scope):
    model = recommender(scope=scope, prefix={}, candidates='unseen')
    target = [3, 1, 4, 1, 5, 9, 2] if scope == 'causal' else [3, 1, 4]
    batch = batch_of(*HISTORIES, target=target)
    logits = model.head(model(batch))
    hide = torch.zeros(logits.shape, dtype=torch.bool)
    hide[batch.seen] = True
    hide[torch.arange(len(target)), batch.target] = False
    expected = F.cross_entropy(logits.masked_fill(hide, -torch.inf), batch.target)
    torch.testing.assert_close(model.loss(HeteroData(), batch), expected)
    with pytest.raises(ValueError, match=r"'candidates' needs to be .*got 'new'"):
        recommender(candidates='new')


@pytest.mark.parametrize('scope', ['causal', 'user'])
def test_items_before_the_cut_need_not_compete_either(scope):
    model = recommender(scope=scope, prefix={}, candidates='unseen', max_len=2)
    rows = [[1, 2, 3, 4], [5], [6, 7, 8]]
    whole = [[1, 2, 3], [1, 2, 3, 4], [5], [6, 7], [6, 7, 8]]
    target, left = [3, 1, 4, 1, 5, 9, 2, 6], [4, 1, 5, 2, 6]
    if scope == 'user':
        whole, target, left = rows, [3, 1, 4], [3, 1, 4]
    logits = model.head(model(batch_of([3, 4], [5], [7, 8], target=left)))
    terms = []
    for row, history, wanted in zip(logits, whole, left, strict=True):
        others = [i for i in range(NUM_ITEMS) if i not in history or i == wanted]
        terms.append(row[others].logsumexp(0) - row[wanted])
    loss = model.loss(HeteroData(), batch_of(*rows, target=target))
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_rows_cut_by_the_model_or_before_have_the_same_loss():
    model = recommender(scope='user', prefix={}, candidates='unseen', max_len=2)
    # What is cut off stands in the rest, too: the same items are seen.
    long = batch_of([1, 2, 2, 1], [3, 3, 3], [5], target=[6, 7, 8])
    cut = batch_of([2, 1], [3, 3], [5], target=[6, 7, 8])
    loss, expected = (model.loss(HeteroData(), batch) for batch in (long, cut))
    torch.testing.assert_close(loss, expected)


def test_causal_model_trains_on_last_targets_too():
    model = recommender(prefix={})
    batch = batch_of(*HISTORIES, target=[3, 1, 4])
    expected = F.cross_entropy(scores(model, batch), batch.target)
    torch.testing.assert_close(model.loss(HeteroData(), batch), expected)


def test_as_many_items_as_rows_have_a_target_a_row():
    model = recommender(prefix={})
    batch = batch_of([], [1, 2], target=[3, 4])
    expected = F.cross_entropy(scores(model, batch), batch.target)
    torch.testing.assert_close(model.loss(HeteroData(), batch), expected)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('scope', ['causal', 'user'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_activation_checkpointing_changes_no_gradient(kind, scope, dtype):
    target = [1] * (7 if scope == 'causal' else 3)
    batch = batch_of(*HISTORIES, target=target)
    losses, grads = [], []
    for checkpointing in (False, True):
        model = recommender(kind, {}, scope, dtype, train_embeddings=['graph']).train()
        if checkpointing:
            model.enable_activation_checkpointing()
            calls = count_calls(model.backbone.layers[0].mlp)
        loss = model.loss(HeteroData(), batch)
        loss.backward()
        if checkpointing:
            # The items are run again in backward, a shared instruction is not.
            assert len(calls) == (3 if scope == 'causal' else 2)
        losses.append(loss.detach())
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(('scope', 'prefix'), SHAPES)
def test_a_device_steps_as_fp32_without_checkpointing(
    scope, prefix, dtype, checkpointing, device
):
    batch = batch_of(*HISTORIES, target=[1] * (7 if scope == 'causal' else 3))
    options = {'head': 'tied', 'head_channels': 5, 'train_embeddings': ['graph']}
    options |= {'candidates': 'unseen', 'table_scale': 'rms'}
    reference = recommender('llama', prefix, scope, **options)
    model = recommender('llama', prefix, scope, dtype, **options).to(device)
    out = scores(model, batch_of(*HISTORIES).to(device))
    expected = scores(reference, batch_of(*HISTORIES))
    tolerance = 1e-4 if dtype == torch.float32 else 0.15
    assert (out.cpu() - expected).norm() < tolerance * expected.norm()
    if checkpointing:
        model.enable_activation_checkpointing()
    gradients = []
    for own, where in ((reference, 'cpu'), (model, device)):
        own.train().loss(HeteroData(), batch.to(where)).backward()
        parts = [p.grad for p in own.parameters() if p.requires_grad]
        assert {part.device.type for part in parts} == {where}
        gradients.append(torch.cat([part.flatten().cpu() for part in parts]))
    expected, found = gradients
    assert (found - expected).norm() < tolerance * expected.norm()


def count_calls(module: torch.nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('scope', 'prefix'), SHAPES)
def test_bf16_backbone_with_fp32_trainables(kind, scope, prefix):
    model = recommender(kind, prefix, scope, torch.bfloat16)
    assert model.backbone.dtype == torch.bfloat16
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    batch = batch_of(*HISTORIES)
    reference = recommender(kind, prefix, scope, torch.float32)
    out, expected = scores(model, batch), scores(reference, batch)
    assert out.dtype == torch.float32
    assert (out - expected).norm() < 0.05 * expected.norm()
    target = [1] * (7 if scope == 'causal' else 3)
    loss = model.train().loss(HeteroData(), batch_of(*HISTORIES, target=target))
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_bf16_scores_depend_on_mates_by_rounding_only():
    model = recommender(prefix={}, dtype=torch.bfloat16)
    encoded = model.encode(HeteroData())
    together = model.score(encoded, batch_of(*HISTORIES))
    alone = torch.cat([model.score(encoded, batch_of(row)) for row in HISTORIES])
    assert (together - alone).norm() < 0.02 * alone.norm()


@pytest.mark.parametrize('scope', ['causal', 'user'])
def test_only_the_last_items_are_read(scope):
    model = recommender(scope=scope, prefix={}, max_len=3)
    batch = batch_of([9, 8, 1, 2, 3], [4])
    torch.testing.assert_close(
        scores(model, batch), scores(model, batch_of([1, 2, 3], [4]))
    )
    if scope == 'causal':
        long = batch_of([9, 8, 1, 2, 3], [4], target=[0, 0, 5, 6, 7, 8])
        short = batch_of([1, 2, 3], [4], target=[5, 6, 7, 8])
        torch.testing.assert_close(model.loss(None, long), model.loss(None, short))


def test_what_is_cut_leaves_a_target_a_row_one_a_row():
    # Of three items two are left: as many as rows, of which one is empty.
    model = recommender(max_len=2)
    batch = batch_of([], [1, 2, 3], target=[4, 5])
    expected = F.cross_entropy(scores(model, batch), torch.tensor([4, 5]))
    torch.testing.assert_close(model.loss(None, batch), expected)
    every = batch_of([], [1, 2, 3], target=[4, 5, 6])
    alone = batch_of([2, 3], target=[5, 6])
    torch.testing.assert_close(model.loss(None, every), model.loss(None, alone))


def test_items_of_others_are_refused():
    model = recommender()
    for wrong in (-1, NUM_ITEMS):
        with pytest.raises(ValueError, match=r"'batch.item' needs to lie in \[0, "):
            scores(model, batch_of([1, wrong]))
        with pytest.raises(ValueError, match=r"'batch.target' needs to lie in \[0, "):
            model.loss(None, batch_of([1, 2], target=[3, wrong]))


def test_empty_history_is_read_at_the_instruction():
    model = recommender(prefix={})
    encoded = model.encode(HeteroData())
    out = model.score(encoded, batch_of([], [1, 2], []))
    expected = model.head(encoded.instruction.state[None])
    torch.testing.assert_close(out[[0, 2]], expected.expand(2, -1))
    torch.testing.assert_close(out[1:2], model.score(encoded, batch_of([1, 2])))


def test_the_instruction_is_run_once_and_without_the_rows():
    model = recommender(prefix={})
    sizes: list[torch.Size] = []
    model.backbone.layers[0].mlp.register_forward_hook(
        lambda module, args, out: sizes.append(out.shape[:2])
    )
    encoded = model.encode(HeteroData())
    model.score(encoded, batch_of(*HISTORIES))
    model.score(encoded, batch_of([1, 2]))
    assert sizes == [(1, 4), (3, 4), (1, 2)]


def test_training_projects_each_item_of_the_batch_once():
    model = recommender()
    sizes: list[int] = []
    model.projector.register_forward_hook(
        lambda module, args, out: sizes.append(out.size(0))
    )
    model(batch_of([1, 2, 1], [1, 2]))
    model.encode(HeteroData())
    assert sizes == [2, NUM_ITEMS]


def test_missing_embeddings_are_zeros():
    holes = tables()
    holes['seq'][3, 2] = math.nan
    zeros = tables()
    zeros['seq'][3] = 0
    batch = batch_of([3, 1], [2])
    torch.testing.assert_close(
        scores(recommender(item_embeddings=holes), batch),
        scores(recommender(item_embeddings=zeros), batch),
    )


@pytest.mark.parametrize(
    ('token', 'prefix', 'tables_'),
    [
        (['seq'], None, {'seq'}),  # without graph ID and prefix: LLaRA
        (['seq'], {}, {'seq', 'graph'}),  # without graph ID
        (['graph'], {}, {'graph'}),  # without sequence ID
        (None, {}, {'graph', 'seq'}),
    ],
)
def test_ablations_are_absent_parts(token, prefix, tables_):
    model = recommender(prefix=prefix, token_embeddings=token)
    assert set(model.tables.channels) == tables_
    width = {'graph': 4, 'seq': 6}
    names = token or ['graph', 'seq']
    assert model.projector.mlp.channel_list[0] == sum(width[n] for n in names)
    assert model.embeddings()['item'].shape == (
        NUM_ITEMS,
        sum(width[n] for n in names),
    )
    assert scores(model, batch_of(*HISTORIES)).shape == (3, NUM_ITEMS)


def test_dropout_works_in_training_only():
    model = recommender(dropout=0.5)
    batch = batch_of(*HISTORIES)
    torch.testing.assert_close(model(batch), model(batch), rtol=0, atol=0)
    model.train()
    assert not torch.allclose(model(batch), model(batch))


def test_without_lora_the_backbone_is_frozen_and_named_unchanged():
    model = recommender(lora=None)
    assert not any(p.requires_grad for p in model.llm.parameters())
    assert model.backbone is model.llm


def test_attention_is_switched_where_the_backbone_came_with_another():
    llm = tiny_llm()
    llm.set_attn_implementation('sdpa')
    model = LLMRecommender(llm, Prompt((1,)), tables())
    assert model.backbone.config._attn_implementation == 'graph_prefix'


def test_trainable_parameters_of_the_released_set_up():
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
    )
    num_users, num_items = 22363, 12101
    with torch.device('meta'):
        llm = AutoModel.from_config(config, dtype=torch.bfloat16)
        table = torch.empty(num_items, 64)
        model = hellm(llm, Prompt((1,)), table, table, head='frozen_random')
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 110_272_512
    dead = 274_624 + 64 * (num_users + num_items)
    assert trained + dead == 112_752_832
    assert model.head.weight.numel() == num_items * 4096
    backbone = sum(
        p.numel() for n, p in model.backbone.named_parameters() if 'lora' not in n
    )
    assert backbone == 6_607_343_616


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'scope': 'both'}, "'scope' needs .*got 'both'"),
        ({'dropout': 1.0}, r"'dropout' needs to lie in \[0, 1\) \(got 1.0\)"),
        ({'head_dropout': -0.1}, r"'head_dropout' needs to lie .*got -0.1"),
        ({'max_len': 0}, "'max_len' .*got 0"),
        ({'token_embeddings': []}, "'token_embeddings' .*got none"),
        ({'token_embeddings': ['text']}, "'token_embeddings' .*got 'text'.*'graph'"),
        ({'prefix': {}, 'prefix_embedding': 'text'}, "'prefix_embedding' .*got 'text'"),
        ({'prefix': {'channels': 5}}, "'prefix' needs .*'channels': 4.*got.* 5"),
        ({'prefix': {'scope': 'user'}}, "'prefix' needs .*'causal'.*got.*'user'"),
        ({'prefix': {'num_layers': 3}}, "'prefix' needs .*'num_layers': 2"),
        (
            {'token_embeddings': ['seq'], 'train_embeddings': ['graph']},
            "'train_embeddings' .*nothing reads .*got 'graph'",
        ),
        ({'head': 'mlp'}, "'kind' .*got 'mlp'"),
        ({'item_embeddings': {}}, "'token_embeddings' .*got none"),
        (
            {'item_embeddings': {'seq': torch.zeros(3, 2), 'text': torch.zeros(4, 2)}},
            "'item_embeddings' needs a row for the same items",
        ),
        (
            {'item_embeddings': {'seq': torch.full((3, 2), math.inf)}},
            "'item_embeddings' needs finite values .*'seq'",
        ),
        ({'item_embeddings': {'seq': torch.zeros(3)}}, r"'item_embeddings' .*\[I, d\]"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        recommender(**{'scope': 'causal', **kwargs})


def test_a_batch_without_rows_is_refused():
    model = recommender()
    with pytest.raises(ValueError, match="'batch' needs at least one row"):
        model(batch_of())
    with pytest.raises(ValueError, match="'batch' needs at least one row"):
        scores(model, batch_of())


def test_targets_that_do_not_fit():
    with pytest.raises(ValueError, match="'batch' needs a target for each of 3"):
        recommender(scope='user').loss(None, batch_of(*HISTORIES, target=[1] * 7))
    with pytest.raises(ValueError, match=r"'batch' needs a target.*got 0"):
        recommender().loss(None, batch_of(*HISTORIES))


def test_two_adapters_are_refused():
    model = recommender()
    with pytest.raises(ValueError, match="'lora' needs an 'llm' without an adapter"):
        LLMRecommender(model.llm, Prompt((1,)), tables(), lora=LORA)


def test_a_trained_prefix_alone_fits_a_few_rows():
    torch.manual_seed(0)
    model = recommender(prefix={'scale': 'mean'}, lora=LORA, head='tied').train()
    batch = batch_of([1, 2, 3], [3, 2, 1], target=[2, 3, 4, 9, 8, 7])
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.01
    )
    first = float(model.loss(None, batch).detach())
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(None, batch)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2 * first


def test_rotary_needs_a_backbone_that_rotates():
    model = recommender(prefix={'rotary': True})
    plain = recommender(prefix={})
    plain.load_state_dict(model.state_dict())
    batch = batch_of(*HISTORIES)
    assert (scores(model, batch) - scores(plain, batch)).abs().max() > 1e-3
    del model.backbone.rotary_emb
    with pytest.raises(ValueError, match=r"'rotary' needs a backbone.*LlamaModel"):
        LLMRecommender(model.llm, Prompt((1,)), tables(), model.prefix, scope='causal')
