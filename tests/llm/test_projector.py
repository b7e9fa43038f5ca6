from __future__ import annotations

import torch

from hellm_pyg.llm.projector import FusedProjector


def test_formula():
    projector = FusedProjector(6, 16)
    assert str(projector) == 'FusedProjector(6, 16)'
    x = torch.randn(2, 5, 6)
    first, second = projector.mlp.lins
    hidden = torch.nn.functional.gelu(x @ first.weight.t() + first.bias)
    expected = hidden @ second.weight.t() + second.bias
    torch.testing.assert_close(projector(x), expected)


def test_rows_do_not_depend_on_each_other():
    projector = FusedProjector(6, 16).train()
    x = torch.randn(10, 6)
    torch.testing.assert_close(projector(x)[3:4], projector(x[3:4]))


def test_number_of_parameters_in_the_paper():
    with torch.device('meta'):
        projector = FusedProjector(128, 4096)
    assert sum(p.numel() for p in projector.parameters()) == 17_309_696


def test_reset_parameters():
    projector = FusedProjector(6, 16)
    before = projector.mlp.lins[0].weight.clone()
    projector.reset_parameters()
    assert not torch.equal(before, projector.mlp.lins[0].weight)
