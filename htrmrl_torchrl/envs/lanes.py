"""The contracts between trial bookkeeping, whatever simulates the lanes, and the benchmarks that name both.

A *lane* is one of the ``N`` environments that run side by side. Simulators know nothing about trials, episodes or
horizons: they are told which (task, goal) each lane plays and they step.

An environment of your own that says what its tasks, goals and success are is a `Benchmark`, in any module. Its path
``package.module:NAME`` is then a name like ``ML10``: `make_env` plays it (in worker processes too), the recipes train
on it, evaluate it on the splits ``val`` and ``test``, choose the best checkpoint on ``val`` and look inside. (On a
factory, which returns a TorchRL environment, they train alone.) ``toy.py`` is a complete one. The parts:

    >>> class Guess(Lanes):  # one number to guess; what ``Lanes`` defines itself need not be there
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
    """``num_lanes`` simulators stepped together. All arrays belong to the caller: they are never overwritten later."""

    num_lanes: int
    obs_dim: int
    action_low: FloatArray  # [a]
    action_high: FloatArray  # [a]

    @property
    def divergences(self) -> int:
        """How often a simulator has diverged in a step so far, all lanes together (see ``divergence.py``)."""
        return 0

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
        raise ValueError(f"{type(self).__name__} has no method render, so there are no pictures of it.")

    def close(self) -> None:
        """Free the simulators; calling it twice is harmless."""


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
    """Tasks, goals and simulators of an environment; nothing of it is built.

    Attributes:
        name: its canonical form.
        train, test: task names, sorted; ``val`` has those of ``train``.
        num_goals: of each task, in each split.
        lanes: called as ``lanes(split, horizon, benchmark_seed)``; what differs between splits does so here.
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
    lanes: Callable[[str, int, int], LaneKind]
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


def check_choice(choices: Any, **words: str) -> None:
    """Raise ValueError naming the first argument that is not one of a ``Literal``'s words."""
    for name, word in words.items():
        if word not in get_args(choices):
            raise ValueError(f"{name}={word!r} is unknown; choose one of {', '.join(get_args(choices))}.")
