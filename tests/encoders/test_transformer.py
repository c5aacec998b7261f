"""The transformer layer: its shortcuts equal the loops, its initial weights are T-Fixup's."""

import pytest
import torch
from torch import nn

from htrmrl_torchrl.encoders.transformer import Attention, TransformerLayer
from tests.helpers import assert_same
from tests.reference import transform


def make_layer(norm="pre_ln", seed=0):
    torch.manual_seed(seed)
    layer = TransformerLayer(d_model=8, num_heads=2, d_feedforward=12, norm=norm, num_layers=3).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)  # biases and norms too
    return layer


@pytest.mark.parametrize("norm", ["pre_ln", "tfixup"])
def test_all_positions_and_the_newest_alone_equal_the_loops(norm):
    layer, x = make_layer(norm), torch.randn(1, 4, 8, dtype=torch.float64)
    causal = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    with torch.no_grad():
        expected = torch.stack(transform(layer, list(x[0]), causal=True))
        assert_same(layer(x, causal)[0], expected, 1e-10)
        assert_same(layer.newest(x, torch.ones(1, 4, dtype=torch.bool))[0, 0], expected[-1], 1e-10)
        full = torch.stack(transform(layer, list(x[0]), causal=False))
        assert_same(layer(x, torch.ones_like(causal))[0], full, 1e-10)
        assert (full - expected)[:-1].abs().min() > 1e-4


@pytest.mark.parametrize("norm", ["pre_ln", "tfixup"])
def test_new_positions_after_a_past_equal_the_loops(norm):
    layer = make_layer(norm)
    past, new = torch.randn(1, 3, 8, dtype=torch.float64), torch.randn(1, 2, 8, dtype=torch.float64)
    mask = torch.tensor([[False, True, True]])
    with torch.no_grad():
        keys, values = layer.keys_values(past)
        out = layer.extend(new, keys, values, mask)[0]
        for i in range(2):  # each sees the two real ones and itself, not the other new one
            expected = transform(layer, [past[0, 1], past[0, 2], new[0, i]], causal=True)[-1]
            assert_same(out[i], expected, 1e-10)


def test_attention_weights_are_a_distribution_over_what_may_be_seen():
    layer, x = make_layer(), torch.randn(5, 4, 8, dtype=torch.float64)
    mask = torch.tensor([False, True, True, True]).expand(5, 4)
    weights = layer.newest_weights(x, mask)
    assert weights.shape == (5, 2, 4)
    assert_same(weights.sum(-1), torch.ones(5, 2, dtype=torch.float64), 1e-10)
    assert not weights[..., 0].any() and (weights[..., 1:] > 0).all()


@pytest.mark.parametrize("num_layers", [1, 2, 6])
def test_tfixup_scales_the_initial_weights_and_nothing_else(num_layers):
    """Huang et al. 2020: 0.67 N^-1/4 on feed-forward and output weights, sqrt(2) more on values."""
    layers = []
    for norm in ("pre_ln", "tfixup"):
        torch.manual_seed(5)
        layers.append(TransformerLayer(d_model=8, num_heads=2, d_feedforward=12, norm=norm, num_layers=num_layers))
    plain, scaled = layers
    factor = 0.67 * num_layers ** (-1 / 4)
    attention = {"query": 1.0, "key": 1.0, "value": factor * 2**0.5, "output": factor}
    for name, by in attention.items():
        weight = getattr(plain.attention, name).weight
        torch.testing.assert_close(getattr(scaled.attention, name).weight, weight * by, rtol=1e-6, atol=0)
    for name in ("widen", "narrow"):
        weight = getattr(plain, name).weight
        torch.testing.assert_close(getattr(scaled, name).weight, weight * factor, rtol=1e-6, atol=0)
    assert all(not p.any() for name, p in scaled.named_parameters() if name.endswith("bias"))


def test_only_pre_ln_has_layer_norms():
    def norms(norm):
        layer = TransformerLayer(d_model=8, num_heads=2, d_feedforward=12, norm=norm, num_layers=1)
        return sum(isinstance(module, nn.LayerNorm) for module in layer.modules())

    assert (norms("pre_ln"), norms("tfixup")) == (2, 0)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"num_heads=3 does not divide d_model=8"):
        Attention(d_model=8, num_heads=3)
    with pytest.raises(ValueError, match=r"num_heads=0 does not divide"):
        Attention(d_model=8, num_heads=0)
    with pytest.raises(ValueError, match=r"norm='post_ln' is unknown; choose one of pre_ln, tfixup"):
        TransformerLayer(d_model=8, num_heads=2, d_feedforward=12, norm="post_ln", num_layers=1)
