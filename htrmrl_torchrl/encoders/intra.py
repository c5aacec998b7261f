"""The lower level: a window of tokens of one episode -> one embedding."""

import torch
from torch import Tensor, nn

from htrmrl_torchrl.encoders.transformer import Norm, TransformerStack, attend_through, causal_mask


class IntraEpisodeEncoder(nn.Module):
    """Encodes windows of tokens: linear embedding, positions, causal transformer layers, newest position's output.

    Shapes: tokens ``[W, T, X]``, mask ``[W, T]`` -> embeddings ``[W, D]``.
    """

    def __init__(
        self,
        *,
        token_dim: int,
        window: int,
        d_model: int,
        num_heads: int,
        num_layers: int,
        d_feedforward: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(token_dim, d_model, bias=norm == "pre_ln")
        self.position = nn.Parameter(torch.empty(window, d_model))
        self.layers = TransformerStack.build(
            num_layers=num_layers, d_model=d_model, num_heads=num_heads, d_feedforward=d_feedforward, norm=norm
        )
        self.norm = nn.LayerNorm(d_model) if norm == "pre_ln" else nn.Identity()
        nn.init.normal_(self.position, std=0.02)
        if norm == "tfixup":  # embeddings ~ N(0, d^-1/2) scaled by (9 N)^-1/4
            nn.init.normal_(self.embed.weight, std=d_model**-0.5 * (9 * num_layers) ** -0.25)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self._before_last_layer(tokens, mask)
        return self.norm(self.layers[-1].newest(x, _with_newest(mask)))[:, 0]  # [W, D]

    def _before_last_layer(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position  # [W, T, D]
        where = causal_mask(mask)
        for layer in self.layers[:-1]:
            x = layer(x, where)
        return x

    def attention(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """How the newest token attends over its window in the last layer: ``[W, H, T]``."""
        return self.layers[-1].newest_weights(self._before_last_layer(tokens, mask), _with_newest(mask))

    def attend(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward` by the slow path, and where each token looked in every layer: ``[W, L1, H, T, T]``."""
        x, held = self.embed(tokens) + self.position, _with_newest(mask)
        x, maps = attend_through(self.layers, x, causal_mask(held), held)
        return self.norm(x)[:, -1], maps


def _with_newest(mask: Tensor) -> Tensor:
    """The newest position may always look at itself."""
    return torch.cat([mask[:, :-1], torch.ones_like(mask[:, :1])], -1)
