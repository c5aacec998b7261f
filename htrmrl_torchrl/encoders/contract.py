"""What memory, buffer, heads and recipes know of an encoder: where it reads and writes, and its sizes."""

from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor

from htrmrl_torchrl import keys
from htrmrl_torchrl.encoders.tokens import TokenNormalizer


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What an encoder computes on the way to its vector, for F decisions; ``None`` for what an encoder has not.

    Rows of attention are queries: each sums to one over what the query may look at, and is zero elsewhere. Rows of
    padding (and of empty slots) are zero. In a level's last layer only the newest query's row has any influence.

    Args:
        hidden: ``[F, D]``, the encoder's vector.
        embedding: ``[F, D]`` of the current window.
        past_embedding: ``[F, E-1, D]`` of the past windows, zero where a slot is empty.
        window_attention: ``[F, L1, H, T, T]`` within the current window.
        past_attention: ``[F, E-1, L1, H, T, T]`` within the past windows.
        slot_attention: ``[F, L2, H, E, E]`` over windows, the present last.
    """

    hidden: Tensor
    embedding: Tensor | None = None
    past_embedding: Tensor | None = None
    window_attention: Tensor | None = None
    past_attention: Tensor | None = None
    slot_attention: Tensor | None = None


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
        self.tokens = TokenNormalizer(observation_dim=observation_dim, action_dim=action_dim, reward_scale=reward_scale)

    @torch.no_grad()
    def inspect(self, context: TensorDictBase) -> Inside:
        """What happens inside for a context ``[*batch]`` of F decisions, in a computation of its own.

        The forward pass knows nothing of it. An encoder without attention shows its vector alone.
        """
        batch = TensorDict({keys.CONTEXT: context}, batch_size=context.batch_size)
        return Inside(hidden=self.forward(batch).get(self.out_keys[0]).reshape(-1, self.d_model))

    @property
    def own_key(self) -> str | None:
        """Where in the context the memory leaves something for this encoder alone, if it does."""
        return None


def check_sizes(*, least: int = 1, **sizes: int) -> None:
    """Refuses sizes below ``least``, by name."""
    for name, value in sizes.items():
        if value < least:
            raise ValueError(f"{name}={value} is too small; it must be at least {least}.")
