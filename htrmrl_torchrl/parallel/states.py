"""What several processes hold in parts, as one thing for checkpoints."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from htrmrl_torchrl.envs.shares import LaneShare
from htrmrl_torchrl.parallel.ranks import Ranks

State = dict[str, Any]


class _Resumable(Protocol):
    def checkpoint_state(self) -> State: ...
    def load_checkpoint_state(self, state: State) -> None: ...


class Joined:
    """An environment or a memory of which each rank has a share: its states are those of one process.

    So a checkpoint of any number of ranks continues with any other.

    Args:
        owner: this rank's.
        ranks: all of them; they call the same methods in the same order.
        share: this rank's environments.
        join: makes the state of all environments from those of the ranks.
        split: takes this rank's from the state of all environments.
    """

    def __init__(
        self,
        owner: _Resumable,
        *,
        ranks: Ranks,
        share: LaneShare,
        join: Callable[[Sequence[State]], State],
        split: Callable[[State, LaneShare], State],
    ) -> None:
        self._owner, self._ranks, self._share, self._join, self._split = owner, ranks, share, join, split

    def checkpoint_state(self) -> State:
        """That of all environments, in every rank."""
        return self._join(self._ranks.gather(self._owner.checkpoint_state()))

    def load_checkpoint_state(self, state: State) -> None:
        """Continues with the own share of a state of all environments."""
        self._owner.load_checkpoint_state(self._split(state, self._share))
