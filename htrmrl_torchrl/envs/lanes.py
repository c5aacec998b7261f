"""The contract between trial bookkeeping and whatever simulates the lanes.

A *lane* is one of the ``N`` environments that run side by side. Simulators know nothing about trials, episodes or
horizons: they are told which (task, goal) each lane plays and they step.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Picture = npt.NDArray[np.uint8]


class Lanes(Protocol):
    """``num_lanes`` simulators stepped together. All arrays belong to the caller: they are never overwritten later."""

    num_lanes: int
    obs_dim: int
    action_low: FloatArray  # [a]
    action_high: FloatArray  # [a]

    @property
    def divergences(self) -> int:
        """How often a simulator has diverged in a step so far, all lanes together (see ``divergence.py``)."""
        ...

    def reset(self, lanes: IntArray, tasks: IntArray, goals: IntArray) -> FloatArray:
        """Start an episode of ``(tasks[i], goals[i])`` on lane ``lanes[i]``; returns ``[len(lanes), obs_dim]``."""
        ...

    def step(self, actions: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Step every lane: ``actions`` [N, a] -> observation [N, obs_dim], reward [N], success [N]."""
        ...

    def render(self, lane: int, *, size: int) -> Picture:
        """A picture [size, size, 3] (RGB) of what ``lane`` plays now. The lanes go on as if nobody had looked."""
        ...

    def close(self) -> None:
        """Free the simulators; calling it twice is harmless."""
        ...


class Deck(Protocol):
    """Decides which (task, goal) a lane plays in its next trial."""

    def deal(self, lanes: Sequence[int]) -> list[tuple[int, int]]:
        """End the trial of these lanes and return each one's next (task index, goal index)."""
        ...

    def reseed(self, seed: int) -> None:
        """Start the random stream again; lanes keep what they play now."""
        ...

    def state(self) -> dict[str, object]:
        """Everything that decides future deals, as plain ints, lists and strings."""
        ...

    def load_state(self, state: dict[str, object]) -> None:
        """Put back what :meth:`state` returned."""
        ...


def check_positive(**numbers: int) -> None:
    """Raise ValueError naming the first argument that is not a whole number of at least 1."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, received {number!r}.")
