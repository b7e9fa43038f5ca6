from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hellm_pyg.backbone_shape import BackboneShape, backbone_shape
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
    (folder / 'config.json').write_text('{"model_type": "other"}')
    with pytest.raises(ValueError, match='LLaMA-like'):
        backbone_shape(str(folder))
    (folder / 'config.json').write_text('[]')
    with pytest.raises(ValueError, match=r"config\.json' is damaged.*got a list"):
        backbone_shape(str(folder))
