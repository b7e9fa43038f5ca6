from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, LlamaConfig

from hellm_pyg.assembly import build_data, build_llm, build_model
from hellm_pyg.config import LLMConfig, TrainConfig, load_config
from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.llm.prefix import GraphPrefix
from hellm_pyg.llm.prefix_attention import NAME
from hellm_pyg.llm.prompt import Prompt
from hellm_pyg.llm.recommender import LLMRecommender
from hellm_pyg.memory import (
    BackboneShape,
    activation_bytes,
    backbone_shape,
    estimate_run,
)
from tests.shop import write_llm, write_shop


def test_released_profile_trains_what_the_logs_say() -> None:
    rows = estimate_run(load_config('finetune_released'), users=22363, items=12101)
    trained = 110_272_512
    assert rows['gradients'] == 4 * trained
    assert rows['Adam moments'] == 8 * trained
    assert rows['LoRA'] == 4 * 23_199_744
    assert rows['projector'] == 4 * 17_309_696
    assert rows['item head'] == 4 * 12101 * 4096
    assert rows['backbone'] == 2 * 6_607_343_616
    # The article's claim: a batch of 7 fits into 24 GB.
    assert sum(rows.values()) < 24 * 2**30


def test_four_bits_shrink_the_linear_maps_alone() -> None:
    full, small = (
        estimate_run(
            load_config('finetune_released', [f'llm.load_in_4bit={flag}']), 100, 100
        )
        for flag in ('false', 'true')
    )
    assert small['backbone'] == pytest.approx(3.6 * 2**30, rel=0.1)
    assert {k: v for k, v in full.items() if k != 'backbone'} == {
        k: v for k, v in small.items() if k != 'backbone'
    }


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('head', ['linear', 'tied', 'frozen_random'])
@pytest.mark.parametrize('projector_layers', [1, 2])
def test_weights_of_phase_two_are_exact(
    tmp_path: Path, precision: str, head: str, projector_layers: int
) -> None:
    llm = write_llm(tmp_path / 'llm')
    config = load_config(
        'finetune_best',
        [
            *write_shop(tmp_path),
            f'llm.name={llm}',
            'llm.tables={graph: random:6, text: features:text}',
            'llm.token=[text, graph]',
            'llm.train_tables=[graph]',
            f'llm.head={head}',
            f'llm.head_channels={16 if head == "tied" else "null"}',
            f'llm.projector_layers={projector_layers}',
            f'train.precision={precision}',
        ],
    )
    data, ids = build_data(config.data)
    model = build_llm(config, data, ids)
    rows = estimate_run(config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert rows['gradients'] == 4 * trained
    backbone = [p for n, p in model.llm.named_parameters() if 'lora' not in n]
    assert rows['backbone'] == sum(p.numel() * p.element_size() for p in backbone)
    codes = [*model.head.parameters(), *model.head.buffers()]
    assert rows['item head'] == sum(p.numel() * p.element_size() for p in codes)


@pytest.mark.parametrize('recipe', ['pretrain_paper', 'sasrec', 'lightgcn'])
def test_weights_of_phase_one_are_exact(tmp_path: Path, recipe: str) -> None:
    config = load_config(recipe, write_shop(tmp_path))
    data, _ = build_data(config.data)
    trained = sum(p.numel() for p in build_model(config, data).parameters())
    assert estimate_run(config)['parameters'] == 4 * trained


def kept_bytes(model: LLMRecommender, batch: SequenceBatch) -> int:
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        pointer = x.untyped_storage().data_ptr()
        if pointer not in weights:
            kept[pointer] = x  # alive, so that no other takes its place
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.loss(None, batch)
    return sum(x.untyped_storage().nbytes() for x in kept.values())


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('scope', ['user', 'causal'])
@pytest.mark.parametrize('all_maps', [False, True])
def test_activations_are_bounded_but_not_by_far(
    scope: Any, precision: Any, all_maps: bool
) -> None:
    shape = BackboneShape(144, 2, 9, 3, 16, 384, 64)
    torch.manual_seed(0)
    llm = AutoModel.from_config(
        LlamaConfig(
            vocab_size=64,
            hidden_size=144,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=9,
            num_key_value_heads=3,
        ),
        attn_implementation=NAME,
    ).to(torch.bfloat16 if precision == 'bf16' else torch.float32)
    targets = list(shape.maps)[0 if all_maps else 4 :]
    lora = {'r': 4, 'lora_dropout': 0.05, 'target_modules': targets}
    num_rows, length, num_items = 8, 30, 50
    model = LLMRecommender(
        llm,
        Prompt(tuple(range(60)), (1, 2, 3)),
        {'graph': torch.randn(num_items, 16)},
        GraphPrefix(16, 144, 2, scope=scope, rank=8),
        scope=scope,
        lora=lora,
        max_len=length,
    )
    row = torch.arange(num_rows).repeat_interleave(length)
    num_targets = num_rows * (length if scope == 'causal' else 1)
    batch = SequenceBatch(
        torch.arange(num_rows),
        torch.randint(0, num_items, (num_rows * length,)),
        row,
        torch.randint(0, num_items, (num_targets,)),
    )
    train = TrainConfig(batch_size=num_rows, max_len=length, precision=precision)
    config = LLMConfig(scope=scope, prefix={'num_tokens': 10}, lora=lora)
    bound = activation_bytes(train, config, shape)
    assert 1 <= bound / kept_bytes(model, batch) < 2.3


def test_backbones_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_llm(tmp_path / 'llm')
    assert backbone_shape(str(folder)) == BackboneShape(16, 2, 4, 2, 4, 24, 8)
    assert backbone_shape(str(folder), num_layers=1).num_layers == 1
    small = backbone_shape('SmolLM2-135M-Instruct')
    assert small.num_linear + small.num_other == 134_515_008

    def offline(*args: Any) -> None:
        raise OSError('no route')

    monkeypatch.setattr('huggingface_hub.hf_hub_download', offline)
    with pytest.raises(ValueError, match=r"'llm.name' is neither .*got 'no/such'"):
        backbone_shape('no/such')
    (folder / 'config.json').write_text('{"model_type": "other"}')
    with pytest.raises(ValueError, match='LLaMA-like'):
        backbone_shape(str(folder))
    (folder / 'config.json').write_text('[]')
    with pytest.raises(ValueError, match=r"config\.json' is damaged.*got a list"):
        backbone_shape(str(folder))


def test_unread_data_say_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'runs/beauty/sasrec').mkdir(parents=True)  # has just begun
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('HELLM_DATA', raising=False)
    config = load_config('finetune_best')
    for sizes in ((None, None), (100, None)):
        with pytest.raises(
            ValueError, match=r'export HELLM_DATA=.* --users \d+ --items \d+'
        ):
            estimate_run(config, *sizes)
    assert estimate_run(config, 100, 50)['LoRA'] > 0


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('llm.tables={text: "features:text"}', r"'llm.token' .*\['text'\].*'graph'"),
        ('llm.token=[picture]', "'llm.token' .*got 'picture'"),
        ('llm.train_tables=[picture]', "'llm.train_tables' .*got 'picture'"),
        ('llm.prefix.embedding=picture', "'llm.prefix.embedding' .*got 'picture'"),
        ('llm.prefix.rnak=3', "'llm.prefix.rnak' of GraphPrefix"),
        ('llm.lora.r=abc', r"'llm.lora.r' .* an integer \(got 'abc'\)"),
        ('llm.lora.r=null', r"'llm.lora.r' .* an integer \(got None\)"),
        ('llm.lora.r=[4]', r"'llm.lora.r' .* an integer \(got \[4\]\)"),
        ('llm.lora.r=0', r"'llm.lora.r' .* at least 1 \(got 0\)"),
        ('llm.lora.target_modules=3', r"'llm.lora.target_modules' .*\(got 3\)"),
    ],
)
def test_parts_that_do_not_fit(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_run(load_config('finetune_best', [override]), 100, 50)
