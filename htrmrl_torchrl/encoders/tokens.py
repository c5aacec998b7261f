"""Normalisation of tokens: observations by running statistics, rewards by a factor."""

import torch
from torch import Tensor, nn

from htrmrl_torchrl.specs import MismatchError

SMALLEST_STD = 0.05  # smallest divisor, so that noise is not amplified

AT_REST = 1e-6  # a smaller std counts as constant: float32's mean of equal numbers is not exact


class TokenNormalizer(nn.Module):
    """Raw tokens ``[*batch, x]`` -> normalised tokens of the same shape, as all networks of an agent read them.

    A token is [observation, previous action, previous reward, first]. The observation becomes ``(o - mean) / std``, the
    reward is multiplied by ``reward_scale``, the rest is unchanged. Mean and std are over everything given to `adapt`,
    initially 0 and 1. Call it between an update and the next collection, because the rollout's log-probs depend on
    them. A std below 0.05 is replaced by 0.05, and that of a constant dimension by 1. Sizes o and a are
    ``observation_dim`` and ``action_dim``.

    Example:
        >>> tokens = TokenNormalizer(observation_dim=1, action_dim=1, reward_scale=0.1)
        >>> token = torch.tensor([4.0, 1.0, 5.0, 0.0])
        >>> tokens(token).tolist()
        [4.0, 1.0, 0.5, 0.0]
        >>> tokens.adapt(torch.tensor([[1.0], [3.0]]))  # mean 2, standard deviation 1
        >>> tokens(token).tolist()
        [2.0, 1.0, 0.5, 0.0]
    """

    count: Tensor
    mean: Tensor
    variance: Tensor
    rest: Tensor

    def __init__(self, *, observation_dim: int, action_dim: int, reward_scale: float) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(observation_dim))
        self.register_buffer("variance", torch.ones(observation_dim))
        rest = torch.ones(action_dim + 2)
        rest[-2] = reward_scale
        self.register_buffer("rest", rest, persistent=False)

    @property
    def std(self) -> Tensor:
        """Divisor of observations, ``[o]``."""
        std = self.variance.sqrt()
        return torch.where(std > AT_REST, std.clamp_min(SMALLEST_STD), 1)

    def forward(self, token: Tensor) -> Tensor:
        observation_dim, action_dim = len(self.mean), len(self.rest) - 2
        if token.shape[-1] != observation_dim + action_dim + 2:
            raise MismatchError(
                f"Tokens have size {token.shape[-1]} and the encoder was built for observation_dim={observation_dim} "
                f"and action_dim={action_dim}, for {observation_dim + action_dim + 2}; build it with the sizes of the "
                "environment's observation and action."
            )
        shift, factor = self.affine()
        return (token - shift) * factor

    def affine(self) -> tuple[Tensor, Tensor]:
        """Shift and factor ``[x]`` of `forward`, which stand until the next `adapt`."""
        return torch.cat([self.mean, torch.zeros_like(self.rest)]), torch.cat([1 / self.std, self.rest])

    @torch.no_grad()
    def adapt(self, observation: Tensor) -> None:
        """Updates mean and std with raw observations ``[*batch, o]``; all observations so far have equal weight.

        Source: Chan, Golub and LeVeque (1979), update of mean and variance by batches.
        """
        new = observation.reshape(-1, observation.shape[-1]).to(self.mean)
        share = len(new) / (self.count + len(new)).to(new.dtype)  # of the new ones in the total
        step = new.mean(0) - self.mean
        spread = new.var(0, correction=0) - self.variance
        self.variance += share * spread + share * (1 - share) * step.square()
        self.mean += share * step
        self.count += len(new)
