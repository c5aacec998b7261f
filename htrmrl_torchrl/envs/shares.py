"""Shares of a run's environments: several processes each have a block of them.

::

    environment   0 1 2 3 4 5 6       total = 7, three processes
    process       0 0 1 1 2 2 2       `LaneShare(0, 2, 7)`, `LaneShare(2, 2, 7)`, `LaneShare(4, 3, 7)`

Every process draws random numbers for all environments, in the same order, and takes those of its own. So tasks, starts
and noise of an environment do not depend on the number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from htrmrl_torchrl.envs.lanes import Deck


@dataclass(frozen=True)
class LaneShare:
    """A block of ``count`` environments, beginning at ``first``, out of ``total``.

    Example:
        >>> LaneShare(2, 2, 7).of("abcdefg")
        'cd'
    """

    first: int
    count: int
    total: int

    def of(self, rows: Any) -> Any:
        """The own ones of ``rows``, which has one for each of the ``total``."""
        return rows[self.first : self.first + self.count]


class DeckShare:
    """A deck of all environments for a process that has a block of them.

    All environments begin their trials together, so every process deals for all.
    """

    def __init__(self, deck: Deck, share: LaneShare) -> None:
        self._deck, self._share = deck, share

    def deal(self, lanes: Sequence[int]) -> list[tuple[int, int]]:
        """The next (task, goal) of each own environment; RuntimeError unless all of them begin a trial."""
        if list(lanes) != list(range(self._share.count)):
            raise RuntimeError(
                f"Environments of several processes begin trials together; received {list(lanes)} alone."
            )
        dealt: list[tuple[int, int]] = self._share.of(self._deck.deal(range(self._share.total)))
        return dealt

    def deals(self, task: Any, goal: Any) -> bool:
        """Whether this (task index, goal index) can be dealt."""
        return self._deck.deals(task, goal)

    def reseed(self, seed: int) -> None:
        """As the deck's."""
        self._deck.reseed(seed)

    def state(self) -> dict[str, object]:
        """State of the deck of all environments, the same in all processes."""
        return self._deck.state()

    def load_state(self, state: dict[str, object]) -> None:
        """Puts back what `state` returned."""
        self._deck.load_state(state)


def check_shared(share: LaneShare | None, *, split_trials: bool, disguises: bool) -> None:
    """Raises ValueError for a share of environments that do not all begin their trials together, or look different."""
    if share is not None and (split_trials or disguises):
        what = "shortest_trial" if split_trials else "disguises"
        raise ValueError(
            f"Several processes cannot share out environments with {what}; use one process, or none of it."
        )


def join_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`TrialEnv.checkpoint_state` of one process with all environments, from those of the processes that share them."""
    first = states[0]
    pending = None if first["pending"] is None else [pair for state in states for pair in state["pending"]]
    final = {name: torch.cat([state["final"][name] for state in states]) for name in first["final"]}
    return {**first, "pending": pending, "final": final}


def share_of_state(state: dict[str, Any], share: LaneShare) -> dict[str, Any]:
    """What a process loads for its own environments of what `join_states` returned.

    Raises:
        ValueError: if it is of another number of environments.
    """
    received = {name: len(value) for name, value in state["final"].items()}
    if {*received.values()} != {share.total}:
        raise ValueError(f"The saved environment is of {received} environments, this run has {share.total}.")
    pending = state["pending"]
    final = {name: share.of(value) for name, value in state["final"].items()}
    return {**state, "pending": pending and share.of(pending), "final": final}
