"""One transformer layer, used at both levels of the hierarchy.

Besides the usual forward pass a layer offers what makes the method cheap: the output of the newest position alone, and
one new position attending to keys and values that were computed before.

Masks are True where a query may look. Every position may always look at itself, so that a fully padded window gives
finite numbers (which nobody reads) and a softmax never meets an empty row.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from htrmrl_torchrl.envs.lanes import check_choice

Norm = Literal["pre_ln", "tfixup"]


class Attention(nn.Module):
    """Multi-head attention with its parts exposed: queries, keys and values are projected and combined separately.

    Shapes: ``[W, L, D]`` with W sequences, L positions, D channels; heads split D into ``[H, D / H]``.
    """

    def __init__(self, *, d_model: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(
                f"num_heads={num_heads} does not divide d_model={d_model}; choose d_model as a multiple of num_heads."
            )
        self.num_heads = num_heads
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.output = nn.Linear(d_model, d_model)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))  # [..., L, H, D / H]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """All positions of ``x`` ``[W, L, D]`` under ``mask`` ``[W or 1, L, L]``."""
        return self.attend(x, mask)[0]

    def attend(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and where each position looked: ``[W, H, L, L]``, one row for each query."""
        q, k, v = (self._heads(p(x)) for p in (self.query, self.key, self.value))  # [W, L, H, D / H]
        # Many short sequences: on CPU twice as fast, forward and backward, as F.scaled_dot_product_attention.
        logits = torch.einsum("wihd,wjhd->whij", q, k) / q.shape[-1] ** 0.5
        weights = logits.masked_fill(~mask.unsqueeze(1), -torch.inf).softmax(-1)
        return self.output(torch.einsum("whij,wjhd->wihd", weights, v).flatten(2)), weights

    def weights(self, x: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Attention ``[W, H, L]`` of one query ``x`` ``[W, D]`` over ``keys`` ``[W, L, D]``, ``mask`` ``[W, L]``."""
        q, k = self._heads(self.query(x)), self._heads(keys)
        logits = torch.einsum("whd,wlhd->whl", q, k) / q.shape[-1] ** 0.5
        return logits.masked_fill(~mask.unsqueeze(1), -torch.inf).softmax(-1)

    def newest(self, x: Tensor, mask: Tensor) -> Tensor:
        """The last position's output ``[W, 1, D]`` alone; ``mask`` ``[W, L]`` says where it may look."""
        weights, v = self.weights(x[:, -1], self.key(x), mask), self._heads(self.value(x))
        return self.output(torch.einsum("whl,wlhd->whd", weights, v).flatten(1)).unsqueeze(1)

    def extend(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """New positions that each look at a shared past and at themselves, not at each other.

        Args:
            x: ``[G, S, D]``, S independent new positions for each of G pasts.
            keys, values: ``[G, P, D]``, the projected past.
            mask: ``[G, P]``, True where the past holds something.
        """
        q, own_k, own_v = (self._heads(p(x)) for p in (self.query, self.key, self.value))  # [G, S, H, D / H]
        k, v = self._heads(keys), self._heads(values)  # [G, P, H, D / H]
        own = (q * own_k).sum(-1, keepdim=True)  # [G, S, H, 1]
        past = torch.einsum("gshd,gphd->gshp", q, k).masked_fill(~mask[:, None, None, :], -torch.inf)
        weights = (torch.cat([past, own], -1) / q.shape[-1] ** 0.5).softmax(-1)  # [G, S, H, P + 1]
        out = torch.einsum("gshp,gphd->gshd", weights[..., :-1], v) + weights[..., -1:] * own_v
        return self.output(out.flatten(-2))


class TransformerLayer(nn.Module):
    """Attention and a ReLU feed-forward block, each with a residual connection.

    ``norm="pre_ln"`` normalises the input of both blocks (Xiong et al. 2020). ``norm="tfixup"`` has no layer norm and
    scales the initial weights by the depth instead (Huang et al. 2020, as in TrMRL).

    Args:
        d_model: channels D.
        num_heads: attention heads; divides D.
        d_feedforward: hidden channels of the feed-forward block.
        norm: ``"pre_ln"`` or ``"tfixup"``.
        num_layers: depth N of the encoder that this layer belongs to, the N of T-Fixup's factors.
    """

    def __init__(self, *, d_model: int, num_heads: int, d_feedforward: int, norm: Norm, num_layers: int) -> None:
        super().__init__()
        check_choice(Norm, norm=norm)
        self.attention = Attention(d_model=d_model, num_heads=num_heads)
        self.widen = nn.Linear(d_model, d_feedforward)
        self.narrow = nn.Linear(d_feedforward, d_model)
        self.norm_attention = nn.LayerNorm(d_model) if norm == "pre_ln" else nn.Identity()
        self.norm_feedforward = nn.LayerNorm(d_model) if norm == "pre_ln" else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        if norm == "tfixup":
            self._scale_like_tfixup(num_layers)

    @torch.no_grad()
    def _scale_like_tfixup(self, num_layers: int) -> None:
        # Huang et al. 2020, section 3.2: 0.67 N^-1/4 on feed-forward and output weights, sqrt(2) more on the values.
        # TrMRL scales its packed queries and keys as well; T-Fixup, and we, leave those.
        factor = 0.67 * num_layers**-0.25
        for linear in (self.widen, self.narrow, self.attention.output):
            linear.weight.mul_(factor)
        self.attention.value.weight.mul_(factor * 2**0.5)

    def _feed(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.relu(self.widen(self.norm_feedforward(x))))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """All positions: ``x`` ``[W, L, D]``, ``mask`` ``[W or 1, L, L]`` -> ``[W, L, D]``."""
        return self._feed(x + self.attention(self.norm_attention(x), mask))

    def attend(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and where each position looked: ``[W, H, L, L]``."""
        attended, weights = self.attention.attend(self.norm_attention(x), mask)
        return self._feed(x + attended), weights

    def newest(self, x: Tensor, mask: Tensor) -> Tensor:
        """The last position alone: ``x`` ``[W, L, D]``, ``mask`` ``[W, L]`` -> ``[W, 1, D]``."""
        return self._feed(x[:, -1:] + self.attention.newest(self.norm_attention(x), mask))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What later positions need of ``x`` ``[G, P, D]``: keys and values ``[G, P, D]``."""
        x = self.norm_attention(x)
        return self.attention.key(x), self.attention.value(x)

    def extend(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """New positions ``x`` ``[G, S, D]`` after a past of keys and values ``[G, P, D]``, see `Attention.extend`."""
        return self._feed(x + self.attention.extend(self.norm_attention(x), keys, values, mask))

    def newest_weights(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attention of the last position over all: ``[W, L, D]``, ``[W, L]`` -> ``[W, H, L]``."""
        x = self.norm_attention(x)
        return self.attention.weights(x[:, -1], self.attention.key(x), mask)


class TransformerStack(nn.ModuleList):
    """The layers of one level: a `ModuleList` that a type checker knows to hold `TransformerLayer`."""

    @classmethod
    def build(cls, *, num_layers: int, d_model: int, num_heads: int, d_feedforward: int, norm: Norm) -> Self:
        """Fresh layers; arguments as for `TransformerLayer`."""
        return cls(
            TransformerLayer(
                d_model=d_model, num_heads=num_heads, d_feedforward=d_feedforward, norm=norm, num_layers=num_layers
            )
            for _ in range(num_layers)
        )

    if TYPE_CHECKING:

        def __getitem__(self, index: Any) -> Any: ...

        def __iter__(self) -> Iterator[TransformerLayer]: ...


def attend_through(layers: TransformerStack, x: Tensor, where: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """All layers with every position computed, for inspection.

    Args:
        layers: at least one.
        x: ``[W, L, D]``.
        where: ``[W or 1, L, L]``, where each position may look.
        held: ``[W, L]``, which positions are no padding.

    Returns:
        ``[W, L, D]`` and attention ``[W, N, H, L, L]`` of N layers. The rows of padding, which looks at itself so that
        its numbers stay finite, are zero.
    """
    maps = []
    for layer in layers:
        x, weights = layer.attend(x, where)
        maps.append(weights)
    return x, torch.stack(maps, 1) * held[:, None, None, :, None]


def causal_mask(mask: Tensor) -> Tensor:
    """Where position i of a right-aligned sequence may look: at real positions j <= i, and at itself.

    For ``mask`` = [0, 1, 1] (one row of padding)::

              j = 0  1  2
        i = 0     1  0  0     padding looks at itself only
        i = 1     0  1  0
        i = 2     0  1  1

    Args:
        mask: ``[W, L]`` bool, True where a sequence holds something.

    Returns:
        ``[W, L, L]`` bool.
    """
    length = mask.shape[-1]
    ones = torch.ones(length, length, dtype=torch.bool, device=mask.device)
    return (ones.tril() & mask.unsqueeze(-2)) | torch.eye(length, dtype=torch.bool, device=mask.device)
