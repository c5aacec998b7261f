"""Noise of sampled actions if several processes act in the environments of one run.

Each draws the noise of all environments from torch's global generator and takes the rows of its own. So actions do not
depend on the number of processes, and the generators of all processes stay alike.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from tensordict.nn import ProbabilisticTensorDictModule
from torch import Tensor, nn
from torchrl.modules import IndependentNormal

from htrmrl_torchrl.envs.shares import LaneShare

Noise = Callable[[Tensor], Tensor]  # standard normal numbers of the shape, type and device of a tensor [n, a]


def noise_of(share: LaneShare | None) -> Noise:
    """Draws for the environments of ``share``; for ``None``, as `torch.randn_like` does.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> whole = torch.randn(5, 2)
        >>> _ = torch.manual_seed(0)
        >>> torch.equal(noise_of(LaneShare(3, 2, 5))(torch.zeros(2, 2)), whole[3:])
        True
    """
    if share is None:
        return torch.randn_like

    def draw(like: Tensor) -> Tensor:
        own: Tensor = share.of(torch.randn(share.total, *like.shape[1:], dtype=like.dtype, device=like.device))
        return own

    return draw


class _NoisyNormal(IndependentNormal):
    """`IndependentNormal` whose samples take their noise from elsewhere."""

    def __init__(self, loc: Tensor, scale: Tensor, *, noise: Noise) -> None:
        super().__init__(loc, scale)
        self._noise = noise

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        assert not sample_shape
        drawn: Tensor = self.base_dist.loc + self._noise(self.base_dist.loc) * self.base_dist.scale
        return drawn

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)


@contextmanager
def sampling_of(share: LaneShare | None, policy: nn.Module) -> Iterator[None]:
    """Within the block, a policy of `make_actor_critic` samples its actions with `noise_of` the share; for ``None``, as
    ever."""
    if share is None:
        yield
        return
    noise = noise_of(share)
    heads = [m for m in policy.modules() if isinstance(m, ProbabilisticTensorDictModule)]
    before = [head.distribution_class for head in heads]
    for head in heads:
        head.distribution_class = partial(_NoisyNormal, noise=noise)
    try:
        yield
    finally:
        for head, distribution in zip(heads, before, strict=True):
            head.distribution_class = distribution
