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
    derives from this class, is named by its path (``encoder_kind="package.module:Name"``, see
    `htrmrl_torchrl.agent.registry`) and can be put through ``tests/encoders/test_contract.py``.

    It finds ``("context", "current")`` ``[*batch, T, x]`` and ``current_mask`` ``[*batch, T]``, windows that end with
    the newest token, and of earlier episodes ``past`` ``[*batch, E-1, T, x]``, ``past_mask`` ``[*batch, E-1, T]``,
    ``past_id`` (equal windows have equal ones) and ``slot_mask`` ``[*batch, E-1]``, which slots hold a window.
    ``*batch`` is ``[N]`` in rollouts and ``[segments, steps]`` in updates.

    Attributes:
        recurrent: whether it reads a state that a `RecurrentMemory` carries instead, see `RecurrentEncoder`.

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

    Example:
        >>> class Newest(ContextEncoder):  # an MLP on the newest token, with a setting of its own, depth
        ...     def __init__(self, *, depth: int = 1, **others) -> None:
        ...         super().__init__(**others)
        ...         self.mlp = MLP(self.token_dim, self.d_model, depth=depth, num_cells=self.d_model)
        ...     def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        ...         newest = self.tokens(tensordict.get(keys.CURRENT)[..., -1, :])
        ...         return tensordict.set(self.out_keys[0], self.mlp(newest))
        >>> from torchrl.modules import MLP
        >>> Newest(observation_dim=3, action_dim=1, d_model=8, depth=2).token_dim
        6
    """

    recurrent = False

    def __init__(
        self,
        *,
        observation_dim: int,
        action_dim: int,
        window: int = 1,
        episodes: int = 1,
        d_model: int = 64,
        reward_scale: float = 1.0,
        hidden_key: NestedKey = keys.HIDDEN,
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

    @property
    def remembers(self) -> bool:
        """Whether the memory is to encode past windows for it once per episode, see `HierarchicalEncoder.encode_past`.

        It leaves the result under `own_key`. Without, the encoder finds the raw windows in every context.
        """
        return False

    def encode_past(self, past: Tensor, past_mask: Tensor, past_id: Tensor, slot_mask: Tensor) -> Tensor:
        """What it makes of past windows, for the memory to keep; only of encoders that `remembers`."""
        raise NotImplementedError(f"{type(self).__name__} remembers, so it has to define encode_past.")

    def embed_windows(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Embeddings ``[W, D]`` of windows ``[W, T, x]`` with masks ``[W, T]``, for strategies that compare windows."""
        raise ValueError(f"{type(self).__name__} embeds no windows, which this window strategy asks for; use another.")


def check_sizes(*, least: int = 1, **sizes: int) -> None:
    """Refuses sizes below ``least``, by name."""
    for name, value in sizes.items():
        if value < least:
            raise ValueError(f"{name}={value} is too small; it must be at least {least}.")
