"""Tokens as networks read them: observations normalised by running statistics, previous rewards scaled."""

import torch
from torch import Tensor, nn

from htrmrl_torchrl.specs import MismatchError

SMALLEST_STD = 0.05  # what varies less is scaled as if it varied by so much, or noise would be blown up

AT_REST = 1e-6  # what varies less has not varied: float32's mean of equal numbers is not quite that number


class TokenNormalizer(nn.Module):
    """Raw tokens ``[*batch, x]`` -> tokens of the same shape, as every network of an agent reads them.

    A token is [observation, previous action, previous reward, first]. The observation becomes ``(o - mean) / std``, the
    reward is multiplied by `reward_scale`, the rest stays. Mean and std are those of everything that `adapt` was given,
    at first 0 and 1; call it between an update and the next collection, since log-probs of the rollout depend on them.
    A dimension whose std is below 0.05 is divided by 0.05, and a constant one by 1.

    Args:
        observation_dim, action_dim: sizes o and a.
        reward_scale: factor on the previous reward.

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
        """What observations are divided by, ``[o]``."""
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
        """Takes raw observations ``[*batch, o]`` into mean and std, all that were ever given with equal weight.

        Source: the update of mean and variance by batches of Chan, Golub and LeVeque (1979).
        """
        new = observation.reshape(-1, observation.shape[-1]).to(self.mean)
        share = len(new) / (self.count + len(new)).to(new.dtype)  # of the new ones in all
        step = new.mean(0) - self.mean
        spread = new.var(0, correction=0) - self.variance
        self.variance += share * spread + share * (1 - share) * step.square()
        self.mean += share * step
        self.count += len(new)
