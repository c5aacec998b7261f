"""The contract of a memory: a TensorDict module that comes first in a collector's policy."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from htrmrl_torchrl.encoders.contract import ContextEncoder
from htrmrl_torchrl.specs import MismatchError


class Seen(NamedTuple):
    """Input of N decisions as plain tensors: the content of the context of a TensorDict policy."""

    current: Tensor  # [N, T, x]
    mask: Tensor  # [N, T]
    past: TensorDict  # [N], past windows as in the context, or states of recurrent encoders by name


@runtime_checkable
class Memory(Protocol):
    """Remembers what each environment of a batch has experienced, and writes the context of its next decision.

    Each call is the next step of all N environments, in order. Your own memory needs no base class; test it with
    ``tests/memory/test_contract.py``.

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
        """Raises MismatchError if an encoder (the actor's, or a separate critic's) cannot read the context."""

    def restart(self) -> None:
        """Returns to the state after construction, including the random streams."""

    def forget(self) -> None:
        """Forgets everything: the next call begins new trials in all environments. Random streams continue."""

    def snapshot(self) -> Any:
        """The present content, for `go_back`."""

    def go_back(self, snapshot: Any) -> None:
        """Returns to `snapshot`, which may be used again. Random streams continue."""

    def drop_running(self, lanes: Tensor | None = None) -> None:
        """Forgets the running episodes of environments ``lanes`` ``[n]`` (default: all); they never count as ended."""

    def checkpoint_state(self) -> dict[str, Any]:
        """Everything that the next trial depends on; exact at trial boundaries."""

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Continues from `checkpoint_state`; the next step must begin a trial in every environment."""


def memories_of(policy: nn.Module) -> list[Memory]:
    """All memories in a policy, at any depth."""
    return [module for module in policy.modules() if isinstance(module, Memory)]


def check_readers(
    memory: Memory, encoders: Sequence[ContextEncoder], *, owned: Sequence[ContextEncoder], recurrent: bool
) -> None:
    """Implements `Memory.check_encoders`: all encoders must be ``recurrent``, or none, and include ``owned``.

    Args:
        owned: encoders that the memory itself runs; their results are useless to other encoders.
    """
    if any(encoder.recurrent != recurrent for encoder in encoders):
        raise MismatchError(
            f"{' and '.join(type(e).__name__ for e in encoders)} cannot read the context of a {type(memory).__name__}: "
            "a RecurrentEncoder needs a RecurrentMemory built with it (and the critic's), others an EpisodicMemory."
        )
    missing = recurrent and len(owned) < len(encoders)
    if missing or {id(encoder) for encoder in owned} - {id(encoder) for encoder in encoders}:
        raise MismatchError(
            "The memory was built with another encoder than the actor or critic; build it with the encoder (or both) "
            "given here."
        )
