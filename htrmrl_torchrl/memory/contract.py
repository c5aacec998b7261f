"""What everything else knows of a memory: a TensorDict module that is put first in the policy of a collector."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from htrmrl_torchrl.encoders.contract import ContextEncoder
from htrmrl_torchrl.specs import MismatchError


class Seen(NamedTuple):
    """What a decision of N lanes sees, on plain tensors: what the context of a TensorDict policy holds."""

    current: Tensor  # [N, T, x]
    mask: Tensor  # [N, T]
    past: TensorDict  # [N], the past of windows as in the context, or the states of recurrent encoders by name


@runtime_checkable
class Memory(Protocol):
    """Remembers what each environment of a batch has experienced, and writes the context of its next decision.

    Each call is the next step of all N environments, in order. A memory of your own need not derive from anything; put
    it through ``tests/memory/test_contract.py``.

    Attributes:
        in_keys: observation and trial keys, see `htrmrl_torchrl.keys`.
        out_keys: ``"context"`` first; then what the replay buffer needs to rebuild it.
        remembers_trials: whether a new trial still sees earlier ones.

    Example:
        >>> from htrmrl_torchrl import EpisodicMemory
        >>> isinstance(EpisodicMemory(window=4, episodes=3), Memory)
        True
    """

    in_keys: list[NestedKey]
    out_keys: list[NestedKey]

    @property
    def remembers_trials(self) -> bool: ...

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase: ...

    def check_encoders(self, encoders: Sequence[ContextEncoder]) -> None:
        """Raises MismatchError unless these (an actor's, and perhaps a critic's) can read what it writes."""

    def restart(self) -> None:
        """Back to how it was built, random streams included."""

    def forget(self) -> None:
        """Drops everything: the next call begins new trials everywhere. Random streams go on."""

    def snapshot(self) -> Any:
        """What is remembered now, for `go_back`."""

    def go_back(self, snapshot: Any) -> None:
        """Forgets what came after `snapshot`, which may be used again. Random streams go on."""

    def drop_running(self, lanes: Tensor | None = None) -> None:
        """Forgets the running episodes of environments ``lanes`` ``[n]``, default all: they never count as ended."""

    def checkpoint_state(self) -> dict[str, Any]:
        """All that the next trial depends on, exact at trial boundaries."""

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Goes on where `checkpoint_state` was taken; the next step must begin a trial in every environment."""


def memories_of(policy: nn.Module) -> list[Memory]:
    """The memories in a policy, wherever they stand in it."""
    return [module for module in policy.modules() if isinstance(module, Memory)]


def check_readers(
    memory: Memory, encoders: Sequence[ContextEncoder], *, owned: Sequence[ContextEncoder], recurrent: bool
) -> None:
    """For `Memory.check_encoders`: whether all are ``recurrent`` or none is, and ``owned`` are among them.

    Args:
        owned: the encoders that the memory itself runs, whose results are useless to others.
    """
    if any(encoder.recurrent != recurrent for encoder in encoders):
        raise MismatchError(
            f"{' and '.join(type(e).__name__ for e in encoders)} cannot read what a {type(memory).__name__} writes; a "
            "RecurrentEncoder wants a RecurrentMemory of it (and of the critic's), and any other an EpisodicMemory."
        )
    missing = recurrent and len(owned) < len(encoders)
    if missing or {id(encoder) for encoder in owned} - {id(encoder) for encoder in encoders}:
        raise MismatchError(
            "The memory was built with another encoder than the actor or critic; build it with the one (or both) "
            "given here."
        )
