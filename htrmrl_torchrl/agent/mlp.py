"""The networks inside the heads: a plain MLP, and one whose hidden layers a context vector modulates."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrl.modules import MLP


def make_mlp(in_features: int, out_features: int, hidden: Sequence[int], *, gain: float) -> MLP:
    """An MLP of tanh layers, orthogonally initialised; ``gain`` is that of the last layer.

    Shapes: ``[*batch, in_features]`` -> ``[*batch, out_features]``.
    """
    mlp = MLP(in_features=in_features, out_features=out_features, num_cells=list(hidden), activation_class=nn.Tanh)
    linears = linears_of(mlp)
    for linear in linears:
        nn.init.orthogonal_(linear.weight, gain=gain if linear is linears[-1] else 2**0.5)
        nn.init.zeros_(linear.bias)
    return mlp


class FiLM(nn.Module):
    """An MLP of tanh layers on the last entries of its input; the first ``context_dim`` modulate its hidden layers.

    ``h = tanh((1 + gamma) * (W x + b) + beta)``, where gamma and beta are linear in the context and zero at first
    (Perez et al. 2018). So the context decides what the network does with x.

    Shapes: ``[*batch, in_features]`` -> ``[*batch, out_features]``.

    Example:
        >>> FiLM(11, 2, [16], gain=1.0, context_dim=8)(torch.zeros(5, 11)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, in_features: int, out_features: int, hidden: Sequence[int], *, gain: float, context_dim: int
    ) -> None:
        super().__init__()
        self.context_dim, self.sizes = context_dim, list(hidden)
        self.modulation = nn.Linear(context_dim, 2 * sum(hidden))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.mlp = make_mlp(in_features - context_dim, out_features, hidden, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        context, x = x[..., : self.context_dim], x[..., self.context_dim :]
        gammas, betas = (part.split(self.sizes, -1) for part in self.modulation(context).chunk(2, -1))
        *layers, last = linears_of(self.mlp)
        for layer, gamma, beta in zip(layers, gammas, betas, strict=True):
            x = torch.tanh((1 + gamma) * layer(x) + beta)
        y: Tensor = last(x)
        return y


def linears_of(network: nn.Module) -> list[nn.Linear]:
    """Its linear layers, the last one last."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)]
