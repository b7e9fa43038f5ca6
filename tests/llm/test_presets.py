from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from hellm_pyg.assembly import build_data, build_llm, item_table
from hellm_pyg.config import load_config
from hellm_pyg.data import SequenceLoader
from hellm_pyg.datasets import FakeRecDataset
from hellm_pyg.evaluation import evaluate
from hellm_pyg.llm import (
    LLMRecommender,
    Prompt,
    collm,
    e4srec,
    hellm,
    llara,
    load_backbone,
)
from hellm_pyg.nn.models import Popularity
from hellm_pyg.transforms import LeaveOneOut
from tests.llm.tiny import LORA, NUM_ITEMS, batch_of, tables, tiny_llm
from tests.nn.models.batches import train
from tests.shop import write_llm, write_shop

PROMPT = Prompt((1, 5, 6), (1, 7))


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


@pytest.mark.parametrize(
    ('recipe', 'preset', 'name'),
    [
        ('finetune_collm', collm, 'graph'),
        ('finetune_llara', llara, 'seq'),
        ('finetune_e4srec', e4srec, 'seq'),
    ],
)
def test_recipes_are_the_presets(tmp_path: Path, recipe, preset, name: str):
    overrides = [*write_shop(tmp_path), f'llm.name={write_llm(tmp_path / "llm")}']
    overrides += [f'llm.tables.{name}=random:6', 'train.precision=fp32']
    overrides.append('llm.num_layers=null')
    config = load_config(recipe, overrides)
    data, ids = build_data(config.data)
    built = build_llm(config, data, ids)
    own = {'scope': 'causal', 'table_scale': 'rms'}
    if preset is not e4srec:  # which brings its own head and adapter
        own |= {'head': 'tied', 'head_channels': 128, 'train_embeddings': [name]}
        own |= {'lora': config.llm.lora}
    table = item_table(name, 'random:6', data, ids)
    model = preset(
        load_backbone(str(tmp_path / 'llm'))[0], PROMPT, **{name: table}, **own
    )
    assert shapes(built) == shapes(model)
    assert built.scope == 'causal'
    assert built.prefix is None
    assert built.token_embeddings == [name]


def shapes(model: LLMRecommender) -> dict[str, tuple[torch.Size, bool]]:
    return {n: (p.shape, p.requires_grad) for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    ('preset', 'names'),
    [
        (hellm, ('graph', 'seq')),
        (collm, ('graph',)),
        (llara, ('seq',)),
        (e4srec, ('seq',)),
    ],
)
def test_everything_trained_is_used(preset, names):
    model = build(preset, *names)
    for parameter_name, parameter in model.named_parameters():
        if 'lora_B' in parameter_name:  # zero at first, which stops A's gradient
            torch.nn.init.normal_(parameter, std=0.3)
    model.loss(None, batch_of([1, 2, 4], [3, 2], target=[5, 6])).backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert bool((parameter.grad != 0).any()), f'{parameter_name} is dead'


@pytest.mark.parametrize(
    ('preset', 'name'), [(collm, 'graph'), (llara, 'seq'), (e4srec, 'seq')]
)
def test_learns_planted_structure(preset, name: str):
    data = LeaveOneOut()(FakeRecDataset()[0])
    floor = Popularity(data['user'].num_nodes, data['item'].num_nodes)
    floor.fit(data)
    torch.manual_seed(0)
    # What phase 1 learns of the items: their clusters.
    table = data['item'].x_text.nan_to_num()
    own = {} if preset is e4srec else {'head': 'tied', 'head_channels': 16}
    train_on = {'scope': 'causal', 'lora': LORA, 'train_embeddings': [name]}
    model = preset(tiny_llm(), PROMPT, **{name: table}, **train_on, **own)
    loss = train(model, data, SequenceLoader(data, 'train', 32), 15)
    assert loss < math.log(data['item'].num_nodes)
    found = evaluate(model, data, 'val').metrics['N@10']
    least = 2 * evaluate(floor, data, 'val').metrics['N@10']
    assert found > least, (found, least)


@pytest.mark.parametrize('name', ['collm', 'llara', 'e4srec'])
def test_recipes_train_as_hellm_does(name: str):
    own, hellms = load_config(f'finetune_{name}'), load_config('finetune_best')
    assert own.train == dataclasses.replace(hellms.train, distill=None)
    assert own.data == hellms.data
    assert own.llm.instruction == hellms.llm.instruction
    assert own.llm.name == hellms.llm.name
    assert own.llm.num_layers == hellms.llm.num_layers
