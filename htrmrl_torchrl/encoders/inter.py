"""The upper level: embeddings of past windows and of the current one -> the context vector of a decision."""

from typing import Literal

import torch
from torch import Tensor, nn

from htrmrl_torchrl.encoders.transformer import Norm, TransformerStack, attend_through, causal_mask

AttentionMode = Literal["causal", "full"]


class InterEpisodeEncoder(nn.Module):
    """Relates the current window's embedding to those of past windows.

    The last of its E positions is the present. With ``num_layers=0`` the present passes unchanged.
    """

    def __init__(
        self, *, episodes: int, d_model: int, num_heads: int, num_layers: int, d_feedforward: int, norm: Norm
    ) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(episodes, d_model))
        self.layers = TransformerStack.build(
            num_layers=num_layers, d_model=d_model, num_heads=num_heads, d_feedforward=d_feedforward, norm=norm
        )
        self.norm = nn.LayerNorm(d_model) if norm == "pre_ln" and num_layers else nn.Identity()
        nn.init.normal_(self.position, std=0.02)

    def encode_past(self, past: Tensor, slot_mask: Tensor) -> Tensor:
        """Keys and values of the past in every layer, causal mode.

        Args:
            past: ``[G, E-1, D]`` embeddings, anything where masked.
            slot_mask: ``[G, E-1]``.

        Returns:
            ``[G, L2, 2, E-1, D]``.
        """
        x = past + self.position[:-1]
        where = causal_mask(slot_mask)
        cache = []
        for index, layer in enumerate(self.layers):
            cache.append(torch.stack(layer.keys_values(x), 1))  # [G, 2, E-1, D]
            if index + 1 < len(self.layers):
                x = layer(x, where)
        return torch.stack(cache, 1)

    def decode(self, current: Tensor, cache: Tensor, slot_mask: Tensor) -> Tensor:
        """Context vectors ``[G, S, D]`` of ``current`` ``[G, S, D]`` after a cached past, causal mode."""
        x = current + self.position[-1]
        for index, layer in enumerate(self.layers):
            x = layer.extend(x, cache[:, index, 0], cache[:, index, 1], slot_mask)
        return self.norm(x)

    def forward(self, current: Tensor, past: Tensor, slot_mask: Tensor, *, mode: AttentionMode) -> Tensor:
        """Context vectors ``[F, D]`` of ``current`` ``[F, D]`` with ``past`` ``[F, E-1, D]``, every slot recomputed."""
        x, where, newest = self._sequence(current, past, slot_mask, mode)
        for layer in self.layers[:-1]:
            x = layer(x, where)
        return self.norm(self.layers[-1].newest(x, newest))[:, 0]

    def attention(self, current: Tensor, past: Tensor, slot_mask: Tensor, *, mode: AttentionMode) -> Tensor:
        """How the present attends over past slots and itself in the last layer: ``[F, H, E]``."""
        x, where, newest = self._sequence(current, past, slot_mask, mode)
        for layer in self.layers[:-1]:
            x = layer(x, where)
        return self.layers[-1].newest_weights(x, newest)

    def attend(self, current: Tensor, past: Tensor, slot_mask: Tensor, *, mode: AttentionMode) -> tuple[Tensor, Tensor]:
        """As `forward`, and where each slot looked in every layer: ``[F, L2, H, E, E]``, the present last."""
        x, where, held = self._sequence(current, past, slot_mask, mode)
        x, maps = attend_through(self.layers, x, where, held)
        return self.norm(x)[:, -1], maps

    def _sequence(
        self, current: Tensor, past: Tensor, slot_mask: Tensor, mode: AttentionMode
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.cat([past, current.unsqueeze(-2)], -2) + self.position  # [F, E, D]
        held = torch.cat([slot_mask, slot_mask.new_ones(len(slot_mask), 1)], -1)
        where = causal_mask(held)
        if mode == "full":
            where = where | held.unsqueeze(-2)
        return x, where, held
