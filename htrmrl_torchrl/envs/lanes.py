"""The contracts between trial bookkeeping, whatever simulates the lanes, and the benchmarks that name both.

A *lane* is one of the ``N`` environments that run side by side. Simulators know nothing about trials, episodes or
horizons: they are told which (task, goal) each lane plays and they step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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

    def reset(self, lanes: IntArray, tasks: IntArray, goals: IntArray, draws: IntArray | None = None) -> FloatArray:
        """Start an episode of ``(tasks[i], goals[i])`` on lane ``lanes[i]``; returns ``[len(lanes), obs_dim]``.

        Whatever is random in the start follows from ``draws[i]`` alone (zeros, if there are none): no simulator has a
        random stream of its own, so that starts depend neither on worker processes nor on where a run was continued.
        """
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


LaneBuilder = Callable[[int], Lanes]  # number of lanes -> lanes; pickled into worker processes


@dataclass(frozen=True)
class LaneKind:
    """Lanes that can be built, and what is known of them before: the sizes that specs and shared arrays need."""

    builder: LaneBuilder
    obs_dim: int
    action_low: FloatArray  # [a]
    action_high: FloatArray  # [a]


@dataclass(frozen=True)
class Benchmark:
    """What a built-in name stands for; nothing of it is built.

    Attributes:
        name: its canonical form.
        train, test: task names, sorted; ``val`` has those of ``train``.
        num_goals: of each task, in each split.
        lanes: called as ``lanes(split, horizon, benchmark_seed, backend)``.
        default_horizon: steps per episode.
        max_horizon: most steps per episode, where there is a limit.
        has_success: whether it says what solving a task is; else only returns are reported.
        needs_opengl: whether drawing it does.
        steps_per_second: of its own clock, for videos; in Meta-World a step is 5 physics steps of 2.5 ms.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    num_goals: int
    lanes: Callable[[str, int, int, str], LaneKind]
    default_horizon: int
    max_horizon: int | None = None
    has_success: bool = True
    needs_opengl: bool = True
    steps_per_second: float = 80.0

    def tasks(self, split: str) -> tuple[str, ...]:
        """Sorted task names of ``train``, ``val`` or ``test``."""
        return self.test if split == "test" else self.train


class Deck(Protocol):
    """Decides which (task, goal) a lane plays in its next trial."""

    def deal(self, lanes: Sequence[int]) -> list[tuple[int, int]]:
        """End the trial of these lanes and return each one's next (task index, goal index)."""
        ...

    def deals(self, task: Any, goal: Any) -> bool:
        """Whether this (task index, goal index) is ever dealt; both may be anything."""
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
