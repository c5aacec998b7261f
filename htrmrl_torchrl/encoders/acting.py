"""One encoder step of N environments on plain tensors: the result of `forward` with a fraction of its calls.

A step has so little arithmetic that most of its time is call overhead. So values that hold for many steps are computed
once: the tokens' shift and factor until the weights change, masks as long as they are the same tensors, and the past's
keys and values, in the layout of the products, for one episode. Arithmetic and its order equal those of the modules;
`tests/encoders/test_acting.py` checks this.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F

from htrmrl_torchrl.encoders.contract import ContextEncoder
from htrmrl_torchrl.encoders.hierarchical import HierarchicalEncoder
from htrmrl_torchrl.encoders.mlp import MemorylessEncoder
from htrmrl_torchrl.encoders.recurrent import RecurrentEncoder
from htrmrl_torchrl.encoders.transformer import TransformerLayer, causal_mask

# current [N, T, x], its mask [N, T], and what the memory keeps of the past -> [N, D]
EncoderStep: TypeAlias = Callable[[Tensor, Tensor, TensorDict], Tensor]


def encoder_step(encoder: ContextEncoder) -> EncoderStep | None:
    """`encoder` for single steps, with its present weights; ``None`` for encoders of the user's own.

    The steps' past is what the encoder's memory keeps: `HierarchicalEncoder` finds its cache in it, `RecurrentEncoder`
    its state after the newest token.

    Example:
        >>> encoder = MemorylessEncoder(observation_dim=3, action_dim=1, d_model=8)
        >>> encoder_step(encoder)(torch.randn(4, 1, 6), torch.ones(4, 1, dtype=torch.bool), TensorDict()).shape
        torch.Size([4, 8])
    """
    if type(encoder) is HierarchicalEncoder:
        return _HierarchicalStep(encoder)
    if type(encoder) is MemorylessEncoder:
        shift, factor = encoder.tokens.affine()
        return lambda current, mask, past: encoder.mlp(
            ((current[:, -1] - shift) * factor)[:, : encoder.observation_dim]
        )
    if type(encoder) is RecurrentEncoder:
        return lambda current, mask, past: past.get(encoder.state_key)
    return None


class _HierarchicalStep:
    def __init__(self, encoder: HierarchicalEncoder) -> None:
        self.encoder = encoder
        self.shift, self.factor = encoder.tokens.affine()
        self.embed = encoder.intra.embed.weight, encoder.intra.embed.bias
        *intra, self.newest = [_LayerStep(layer) for layer in encoder.intra.layers]
        self.intra, self.inter = intra, [_LayerStep(layer) for layer in encoder.inter.layers]
        self.position = encoder.intra.position
        self.present = encoder.inter.position[-1]
        self.norms = _norm_of(encoder.intra.norm), _norm_of(encoder.inter.norm)
        self.mask: Tensor | None = None
        self.past: TensorDict | None = None

    def __call__(self, current: Tensor, mask: Tensor, past: TensorDict) -> Tensor:
        if mask is not self.mask:
            self._prepare_window(mask)
        x = F.linear((current - self.shift) * self.factor, *self.embed) + self.position  # [N, T, D]
        for layer in self.intra:
            x = layer.all(x, self.blocked)
        x = _normed(self.newest.last(x, self.blocked_newest), self.norms[0])  # [N, D]
        if not self.inter:
            return x
        if past is not self.past:
            self._prepare_past(past)
        if self.encoder.attention == "full":
            return self.encoder.inter(x, self.embeddings, self.slot_mask, mode="full")
        x = x + self.present
        for layer, (k, v) in zip(self.inter, self.projected, strict=True):
            x = layer.extend(x, k, v, self.empty)
        return _normed(x, self.norms[1])

    def _prepare_window(self, mask: Tensor) -> None:
        self.mask = mask
        self.blocked = ~causal_mask(mask).unsqueeze(1)  # [N, 1, T, T]
        blocked = ~mask.unsqueeze(1)  # [N, 1, T]
        blocked[..., -1] = False
        self.blocked_newest = blocked if blocked.any() else None

    def _prepare_past(self, past: TensorDict) -> None:
        self.past, self.slot_mask = past, past.get("slot_mask")
        cache = past.get(self.encoder.cache_key[1:], None)
        if cache is None:  # no cache: with a single episode there is no past
            windows = (past.get(name) for name in ("past", "past_mask", "past_id", "slot_mask"))
            cache = self.encoder.encode_past(*windows)
        self.embeddings = cache  # of full attention
        if self.encoder.attention == "causal":
            self.empty = None if self.slot_mask.all() else ~self.slot_mask[:, None, :]  # [N, 1, P]
            self.projected = [
                layer.laid_out(cache[:, index, 0], cache[:, index, 1]) for index, layer in enumerate(self.inter)
            ]


class _LayerStep:
    """`TransformerLayer` on plain tensors, for N environments."""

    def __init__(self, layer: TransformerLayer) -> None:
        attention = layer.attention
        self.heads, self.scale = attention.num_heads, (attention.query.in_features // attention.num_heads) ** 0.5
        self.q, self.k, self.v, self.output, self.widen, self.narrow = (
            (linear.weight, linear.bias)
            for linear in (
                attention.query, attention.key, attention.value, attention.output, layer.widen, layer.narrow,
            )
        )  # fmt: skip
        self.norm_attention, self.norm_feedforward = _norm_of(layer.norm_attention), _norm_of(layer.norm_feedforward)
        if math.frexp(self.scale)[0] == 0.5:  # a power of two: dividing the weights instead changes no digit
            self.q, self.scale = (self.q[0] / self.scale, self.q[1] / self.scale), 1.0

    def all(self, x: Tensor, blocked: Tensor) -> Tensor:
        """`TransformerLayer.forward`: ``[N, T, D]`` -> ``[N, T, D]``."""
        n, t, d = x.shape
        normed = _normed(x, self.norm_attention)
        q, k, v = (F.linear(normed, *p).view(n, t, self.heads, -1) for p in (self.q, self.k, self.v))
        weights = self._softmax(
            _product(q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1)).masked_fill_(blocked, -torch.inf)
        )
        seen = _product(weights, v.permute(0, 2, 1, 3)).permute(0, 2, 1, 3).reshape(n, t, d)
        return self._feed(x + F.linear(seen, *self.output))

    def last(self, x: Tensor, blocked: Tensor | None) -> Tensor:
        """`TransformerLayer.newest`: ``[N, T, D]`` -> ``[N, D]``."""
        n, t, d = x.shape
        normed = _normed(x, self.norm_attention)
        q = F.linear(normed[:, -1], *self.q).view(n, self.heads, 1, -1)
        k, v = (F.linear(normed, *p).view(n, t, self.heads, -1) for p in (self.k, self.v))
        logits = _product(q, k.permute(0, 2, 3, 1)).view(n, self.heads, t)
        weights = self._softmax(logits if blocked is None else logits.masked_fill_(blocked, -torch.inf))
        seen = _product(weights.unsqueeze(2), v.permute(0, 2, 1, 3)).reshape(n, d)
        return self._feed(x[:, -1] + F.linear(seen, *self.output))

    def laid_out(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[N, P, D]`` in the layout of `extend`."""
        k, v = (part.unflatten(-1, (self.heads, -1)) for part in (keys, values))
        return k.permute(0, 2, 3, 1).contiguous(), v.permute(0, 2, 1, 3).contiguous()

    def extend(self, x: Tensor, k: Tensor, v: Tensor, empty: Tensor | None) -> Tensor:
        """`TransformerLayer.extend`: ``x`` ``[N, D]`` after a past from `laid_out`."""
        n, d = x.shape
        normed = _normed(x, self.norm_attention)
        q, own_k, own_v = (F.linear(normed, *p).view(n, self.heads, -1) for p in (self.q, self.k, self.v))
        own = (q * own_k).sum(-1, keepdim=True)  # [N, H, 1]
        past = _product(q.unsqueeze(2), k).squeeze(2)  # [N, H, P]
        if empty is not None:
            past.masked_fill_(empty, -torch.inf)
        weights = self._softmax(torch.cat([past, own], -1))
        seen = _product(weights[..., :-1].unsqueeze(2), v).squeeze(2) + weights[..., -1:] * own_v
        return self._feed(x + F.linear(seen.view(n, d), *self.output))

    def _softmax(self, logits: Tensor) -> Tensor:
        return (logits if self.scale == 1 else logits / self.scale).softmax(-1)

    def _feed(self, x: Tensor) -> Tensor:
        return x + F.linear(F.linear(_normed(x, self.norm_feedforward), *self.widen).relu_(), *self.narrow)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Batched matrix product of contiguous copies, as einsum computes it."""
    n, h, i, j = a.shape
    k = b.shape[-1]
    return torch.bmm(a.reshape(n * h, i, j), b.reshape(n * h, j, k)).view(n, h, i, k)


def _norm_of(norm: nn.Module) -> tuple[tuple[int, ...], Tensor, Tensor, float] | None:
    return (norm.normalized_shape, norm.weight, norm.bias, norm.eps) if isinstance(norm, nn.LayerNorm) else None


def _normed(x: Tensor, norm: tuple[tuple[int, ...], Tensor, Tensor, float] | None) -> Tensor:
    return x if norm is None else torch.layer_norm(x, *norm)
