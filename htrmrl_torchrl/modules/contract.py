"""What memory, buffer, heads and recipes know of an encoder: where it reads and writes, and its sizes."""

import torch
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from htrmrl_torchrl import keys


class ContextEncoder(TensorDictModuleBase):
    """A TensorDict module from ``"context"`` to ``"_hidden"``: what a decision sees -> one vector ``[*batch, D]``.

    An encoder is a pure function of its context. The memory (rollouts) and the storage (updates) write it, and what
    they both hand out has to give the same vector: this is what the tests of parity are about. An encoder of your own
    derives from this class; what it reads beyond a window of tokens is up to its memory and storage.

    Args:
        observation_dim: size o of an observation.
        action_dim: size a of an action. A token is [observation, previous action, previous reward, first], o + a + 2.
        window: tokens T of the windows that it reads.
        episodes: windows E that it reads, the current one included.
        d_model: channels D of the vector.
        reward_scale: factor on the previous reward inside the token.
        hidden_key: where the vector goes.

    Raises:
        ValueError: for sizes below 1.
    """

    token_scale: Tensor  # [x], what tokens are multiplied by: 1 but for the reward

    def __init__(
        self,
        *,
        observation_dim: int,
        action_dim: int,
        window: int,
        episodes: int,
        d_model: int,
        reward_scale: float,
        hidden_key: NestedKey,
    ) -> None:
        super().__init__()
        check_sizes(
            observation_dim=observation_dim, action_dim=action_dim, window=window, episodes=episodes, d_model=d_model
        )
        self.in_keys: list[NestedKey] = [keys.CONTEXT]
        self.out_keys: list[NestedKey] = [hidden_key]
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.token_dim = observation_dim + action_dim + 2
        self.window, self.episodes, self.d_model = window, episodes, d_model
        token_scale = torch.ones(self.token_dim)
        token_scale[-2] = reward_scale
        self.register_buffer("token_scale", token_scale, persistent=False)

    @property
    def own_key(self) -> str | None:
        """Where in the context the memory leaves something for this encoder alone, if it does."""
        return None

    @property
    def compiled_part(self) -> nn.Module:
        """The part that `torch.compile` is worth trying on."""
        raise NotImplementedError


def check_sizes(*, least: int = 1, **sizes: int) -> None:
    """Refuses sizes below ``least``, by name."""
    for name, value in sizes.items():
        if value < least:
            raise ValueError(f"{name}={value} is too small; it must be at least {least}.")
