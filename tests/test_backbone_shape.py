from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from hellm_pyg.backbone_shape import BackboneShape, backbone_shape, lora_parameters
from hellm_pyg.config import LLMConfig
from hellm_pyg.llm.adapter import adapt
from tests.shop import write_llm


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
    for layers in (0, 3):
        with pytest.raises(ValueError, match=rf"'llm.num_layers' .* 1 to 2 .*{layers}"):
            backbone_shape(str(folder), layers)
    sizes = '"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": '
    for config in ('{"model_type": "other"}', f'{{{sizes}0}}', f'{{{sizes}"4"}}'):
        (folder / 'config.json').write_text(config)
        with pytest.raises(ValueError, match=r"'llm.name' needs a LLaMA-like model"):
            backbone_shape(str(folder))
    (folder / 'config.json').write_text('[]')
    with pytest.raises(ValueError, match=r"config\.json' is damaged.*got a list"):
        backbone_shape(str(folder))


def test_other_sizes(tmp_path: Path) -> None:
    sizes = {'hidden_size': 24, 'intermediate_size': 40, 'num_attention_heads': 3}
    small = backbone_shape('SmolLM2-135M-Instruct', 4, sizes)
    assert small == BackboneShape(24, 4, 3, 3, 8, 40, 49152)
    sizes |= {'num_key_value_heads': 1, 'vocab_size': 2}
    folder = str(write_llm(tmp_path / 'llm'))
    assert backbone_shape(folder, sizes=sizes) == BackboneShape(24, 2, 3, 1, 8, 40, 2)
    with pytest.raises(ValueError, match=r"^'shape' needs .*\(got hidden_size\)"):
        backbone_shape(folder, sizes={'hidden_size': 24})


@pytest.mark.parametrize(
    'targets',
    [
        None,
        'all-linear',
        ['gate_proj', 'q_proj'],
        ['self_attn.q_proj'],
        ['layers.1.mlp.up_proj', 'k_proj'],
        r'layers\.[01]\.(self_attn|mlp)\.(v|down)_proj',
    ],
)
def test_lora_is_counted_as_peft_adds_it(targets: list[str] | str | None) -> None:
    shape = BackboneShape(16, 3, 4, 2, 4, 24, 8)
    lora = {'r': 2, 'target_modules': targets}
    with torch.device('meta'):
        llm = LlamaModel(
            LlamaConfig(
                vocab_size=8,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        )
        adapted = adapt(llm, lora)
    number = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert lora_parameters(LLMConfig(lora=lora), shape) == number > 0
