"""The contracts between trial bookkeeping, simulators, and the benchmarks that define both.

In names, a *lane* is one of the ``N`` environments that run side by side. Simulators know nothing about trials,
episodes or horizons: they receive each environment's (task, goal), and step.

A `Benchmark` defines the tasks, goals and success of your own environment, in any module. Its path
``package.module:NAME`` is then a name like ``ML10``: `make_env` builds it (in worker processes too). The recipes train
on it, evaluate it on the splits ``val`` and ``test``, choose the best checkpoint on ``val``, and inspect it. (With a
factory, which returns a TorchRL environment, they only train.) ``toy.py`` is a complete example. The parts:

    >>> class Guess(Lanes):  # guess a number; methods that ``Lanes`` implements are optional
    ...     obs_dim = 1
    ...     action_low, action_high = np.array([-1.0], np.float32), np.array([1.0], np.float32)
    ...     def __init__(self, num_lanes: int) -> None:
    ...         self.num_lanes, self._number = num_lanes, np.zeros(num_lanes, np.float32)
    ...     def reset(self, lanes, tasks, goals, draws=None):
    ...         self._number[lanes] = goals / 10
    ...         return np.zeros((len(lanes), 1), np.float32)
    ...     def step(self, actions):
    ...         off = np.abs(actions[:, 0] - self._number)
    ...         return np.zeros((self.num_lanes, 1), np.float32), -off, off < 0.05
    >>> def lanes(split: str, horizon: int, benchmark_seed: int) -> LaneKind:
    ...     return LaneKind(Guess, Guess.obs_dim, Guess.action_low, Guess.action_high)
    >>> GUESS = Benchmark(name="guess", train=("guess",), test=("guess",), num_goals=10, lanes=lanes, default_horizon=5)

    >>> from htrmrl_torchrl import make_env
    >>> make_env("htrmrl_torchrl.envs.toy:BENCHMARK", num_envs=2).reset()["task"].flatten().tolist()
    [0, 0]
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Picture = npt.NDArray[np.uint8]


class Lanes(Protocol):
    """``num_lanes`` simulators stepped together. All returned arrays belong to the caller and are never overwritten."""

    num_lanes: int
    obs_dim: int
    action_low: FloatArray  # [a]
    action_high: FloatArray  # [a]

    @property
    def divergences(self) -> int:
        """How often a simulator has diverged so far, in all environments together (see ``divergence.py``)."""
        return 0

    def reset(self, lanes: IntArray, tasks: IntArray, goals: IntArray, draws: IntArray | None = None) -> FloatArray:
        """Starts an episode of ``(tasks[i], goals[i])`` in environment ``lanes[i]``; returns ``[len(lanes), obs_dim]``.

        All randomness of the start follows from ``draws[i]`` (default: zeros). Simulators have no random streams of
        their own, so starts depend neither on worker processes nor on where a run was continued.
        """
        ...

    def step(self, actions: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Steps every environment: ``actions`` [N, a] -> observation [N, obs_dim], reward [N], success [N]."""
        ...

    def render(self, lane: int, *, size: int) -> Picture:
        """A picture [size, size, 3] (RGB) of environment ``lane``; later steps do not change."""
        raise ValueError(f"{type(self).__name__} has no method render, so it cannot be drawn; implement render.")

    def close(self) -> None:
        """Frees the simulators; may be called twice."""


LaneBuilder = Callable[[int], Lanes]  # number of environments -> simulators; pickled into worker processes


@dataclass(frozen=True)
class LaneKind:
    """How to build simulators, and the sizes that specs and shared arrays need beforehand."""

    builder: LaneBuilder
    obs_dim: int
    action_low: FloatArray  # [a]
    action_high: FloatArray  # [a]


@dataclass(frozen=True)
class Layout:
    """What an observation's entries are, for disguises (`htrmrl_torchrl.envs.disguise`).

    Attributes:
        positions: the entries (x, y, z) of each position.
        exchangeable: pairs of groups of entries, as long as each other, that may change places.
        orientations: entries that may be hidden.
        action_x: the entry of the action that moves along x.
    """

    positions: tuple[tuple[int, int, int], ...]
    exchangeable: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    orientations: tuple[int, ...]
    action_x: int = 0


@dataclass(frozen=True)
class Benchmark:
    """Tasks, goals and simulators of an environment, none of which is built yet.

    Attributes:
        name: the canonical name.
        train, test: sorted task names; ``val`` has those of ``train``.
        num_goals: number of goals per task, in each split.
        lanes: called as ``lanes(split, horizon, benchmark_seed)``; returns the simulators of a split.
        default_horizon: steps per episode.
        max_horizon: largest number of steps per episode, if limited.
        has_success: whether success is defined; otherwise only returns are reported.
        needs_opengl: whether rendering needs OpenGL.
        steps_per_second: of simulated time, for videos; in Meta-World a step is 5 physics steps of 2.5 ms.
        layout: which observations are positions; required by some disguises.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    num_goals: int
    lanes: Callable[[str, int, int], LaneKind]
    default_horizon: int
    max_horizon: int | None = None
    has_success: bool = True
    needs_opengl: bool = True
    steps_per_second: float = 80.0
    layout: Layout | None = None

    def tasks(self, split: str) -> tuple[str, ...]:
        """Sorted task names of ``train``, ``val`` or ``test``."""
        return self.test if split == "test" else self.train


class Deck(Protocol):
    """Decides which (task, goal) an environment plays in its next trial."""

    def deal(self, lanes: Sequence[int]) -> list[tuple[int, int]]:
        """Ends the trials of these environments and returns the next (task index, goal index) of each."""
        ...

    def deals(self, task: Any, goal: Any) -> bool:
        """Whether this (task index, goal index) is ever dealt; both may have any type."""
        ...

    def reseed(self, seed: int) -> None:
        """Restarts the random stream; environments keep their present (task, goal)."""
        ...

    def state(self) -> dict[str, object]:
        """Everything that determines future deals, as plain ints, lists and strings."""
        ...

    def load_state(self, state: dict[str, object]) -> None:
        """Restores what :meth:`state` returned."""
        ...


def check_positive(**numbers: int) -> None:
    """Raises ValueError with the name of the first argument that is not a whole number of at least 1."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, received {number!r}.")


def check_choice(choices: Any, **words: str) -> None:
    """Raises ValueError with the name of the first argument that is not one of a ``Literal``'s words."""
    for name, word in words.items():
        if word not in get_args(choices):
            raise ValueError(f"{name}={word!r} is unknown; choose one of {', '.join(get_args(choices))}.")
