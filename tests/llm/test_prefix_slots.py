from __future__ import annotations

import torch

from hellm_pyg.llm.prefix_slots import without_bias

H = 48


def test_large_projection_biases_cost_no_precision() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(H, 8, dtype=torch.bfloat16)
    x = torch.randn(5, H, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.bias.fill_(1000.0)
        linear, bias = without_bias(layer)
        torch.testing.assert_close(linear(x), x @ layer.weight.T)
    assert bias is layer.bias
