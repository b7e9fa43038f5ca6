from __future__ import annotations

import pytest

from hellm_pyg.llm import LLMRecommender, Prompt, collm, e4srec, hellm, llara
from tests.llm.tiny import NUM_ITEMS, batch_of, tables, tiny_llm

PROMPT = Prompt((1, 5, 9), (1, 7))


def build(preset, *names: str, **kwargs) -> LLMRecommender:
    parts = {name: tables()[name] for name in names}
    return preset(tiny_llm(), PROMPT, **parts, **kwargs)


@pytest.mark.parametrize(
    ('preset', 'names', 'prefix', 'widths'),
    [
        (hellm, ('graph', 'seq'), True, [10, 16, 16]),
        (collm, ('graph',), False, [4, 16, 16]),
        (llara, ('seq',), False, [6, 16, 16]),
        (e4srec, ('seq',), False, [6, 16]),
    ],
)
def test_parts(preset, names, prefix, widths):
    model = build(preset, *names).eval()
    assert model.token_embeddings == list(names)
    assert (model.prefix is not None) == prefix
    assert model.projector.mlp.channel_list == widths
    assert model.scope == 'user'
    assert model.head.kind == 'linear'
    assert model.head.weight.requires_grad
    adapted = {n.split('.lora_')[0].split('.')[-1] for n in lora_names(model)}
    assert adapted == {'gate_proj', 'up_proj', 'down_proj'}
    config = model.llm.peft_config['default']
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 16, 0.05)
    out = model.score(model.encode(), batch_of([1, 2], [3]))
    assert out.shape == (2, NUM_ITEMS)


def lora_names(model: LLMRecommender) -> list[str]:
    return [name for name, _ in model.named_parameters() if '.lora_' in name]


def test_defaults_of_the_prefix_are_the_released_ones():
    prefix = build(hellm, 'graph', 'seq').prefix
    assert (prefix.num_tokens, prefix.rank, prefix.scale) == (10, None, 'sum')
    assert (prefix.scope, prefix.gate, prefix.pool) == ('user', 'none', True)


def test_everything_can_be_named():
    model = build(
        hellm,
        'graph',
        'seq',
        prefix={'num_tokens': 2, 'rank': 3},
        scope='causal',
        head='tied',
        lora=None,
        token_embeddings=['seq'],
    )
    assert (model.prefix.num_tokens, model.prefix.rank) == (2, 3)
    assert model.prefix.scope == model.scope == 'causal'
    assert model.head.kind == 'tied'
    assert not lora_names(model)
    assert model.projector.mlp.channel_list[0] == 6


def test_presets_leave_their_arguments_alone():
    lora = {'r': 2, 'target_modules': ['gate_proj']}
    prefix = {'rank': 2}
    build(hellm, 'graph', 'seq', lora=lora, prefix=prefix)
    assert lora == {'r': 2, 'target_modules': ['gate_proj']}
    assert prefix == {'rank': 2}
