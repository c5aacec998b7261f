"""The (task, goal) each environment plays next: a balanced shuffled deck for training, a fixed grid for evaluation."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np


class TaskDeck:
    """Deals (task, goal) pairs to ``num_lanes`` environments, balanced at any time and over time.

    The next task is one that the fewest environments play; among these, one dealt least often so far, with random
    ties. So the tasks' environment counts differ by at most one, and no task is dealt twice before all are dealt once.
    Goals come from a shuffled deck per task. The same seed and order of trial ends give the same deals.

    Example:
        >>> deck = TaskDeck(num_tasks=2, num_goals=50, num_lanes=4, seed=0)
        >>> sorted(task for task, _ in deck.deal([0, 1, 2, 3]))
        [0, 0, 1, 1]
    """

    def __init__(self, *, num_tasks: int, num_goals: int, num_lanes: int, seed: int) -> None:
        self.num_tasks, self.num_goals = num_tasks, num_goals
        self._lane_task = np.full(num_lanes, -1, dtype=np.int64)  # -1: plays nothing
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Restart with ``seed``; environments keep their present tasks."""
        self._rng = np.random.default_rng(seed)
        self._dealt = np.zeros(self.num_tasks, dtype=np.int64)
        self._goals: list[list[int]] = [[] for _ in range(self.num_tasks)]

    def deal(self, lanes: Sequence[int]) -> list[tuple[int, int]]:
        """End the trials of these environments and return the next (task, goal) of each, in the order of ``lanes``."""
        lanes = list(lanes)
        self._lane_task[lanes] = -1
        pairs = []
        for lane in lanes:
            task = self._next_task()
            self._lane_task[lane] = task
            pairs.append((task, self._next_goal(task)))
        return pairs

    def deals(self, task: Any, goal: Any) -> bool:
        """Whether this (task index, goal index) can be dealt; both may be anything."""
        whole = type(task) is int and type(goal) is int
        return whole and 0 <= task < self.num_tasks and 0 <= goal < self.num_goals

    def counts(self) -> list[int]:
        """How many environments play each task now."""
        return np.bincount(self._lane_task[self._lane_task >= 0], minlength=self.num_tasks).tolist()

    def _next_task(self) -> int:
        counts = np.asarray(self.counts())
        least_played = np.flatnonzero(counts == counts.min())
        dealt = self._dealt[least_played]
        task = int(self._rng.choice(least_played[dealt == dealt.min()]))
        self._dealt[task] += 1
        return task

    def _next_goal(self, task: int) -> int:
        if not self._goals[task]:
            self._goals[task] = self._rng.permutation(self.num_goals).tolist()
        return self._goals[task].pop()

    def state(self) -> dict[str, object]:
        """Everything that decides future deals, as plain ints, lists and strings."""
        return {
            "rng": json.dumps(self._rng.bit_generator.state),
            "lane_task": self._lane_task.tolist(),
            "dealt": self._dealt.tolist(),
            "goals": [list(goals) for goals in self._goals],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state`; raises ValueError if it has other numbers of environments, tasks or goals."""
        received = (len(state["lane_task"]), len(state["dealt"]))
        if received != (len(self._lane_task), self.num_tasks):
            raise ValueError(
                f"The saved deck has (environments, tasks) = {received}, this one has "
                f"{(len(self._lane_task), self.num_tasks)}; build the environment with the numbers it was saved with."
            )
        check_whole("tasks of environments", state["lane_task"], least=-1, below=self.num_tasks)
        check_whole("deals of tasks", state["dealt"], least=0, below=2**62)
        if len(state["goals"]) != self.num_tasks:
            raise ValueError(f"The saved deck has goals of {len(state['goals'])} tasks, this one has {self.num_tasks}.")
        for goals in state["goals"]:
            check_whole("goals", goals, least=0, below=self.num_goals)
        self._rng.bit_generator.state = json.loads(state["rng"])
        self._lane_task[:] = state["lane_task"]
        self._dealt[:] = state["dealt"]
        self._goals = [list(goals) for goals in state["goals"]]


class FixedGrid:
    """Plays (task, goal) pairs in order: environment ``i`` of N plays ``pairs[i]``, ``pairs[i + N]``, ..., in a cycle.

    Example:
        >>> grid = FixedGrid([(0, 7), (3, 1), (3, 2)], num_lanes=2)
        >>> grid.deal([0, 1]), grid.deal([0])
        ([(0, 7), (3, 1)], [(3, 2)])
    """

    def __init__(self, pairs: Sequence[tuple[int, int]], *, num_lanes: int | None = None) -> None:
        self.pairs = [(int(task), int(goal)) for task, goal in pairs]
        self._trials = [0] * (len(self.pairs) if num_lanes is None else num_lanes)  # dealt so far, by environment

    def deal(self, lanes: Sequence[int]) -> list[tuple[int, int]]:
        dealt = [self.pairs[(lane + self._trials[lane] * len(self._trials)) % len(self.pairs)] for lane in lanes]
        for lane in lanes:
            self._trials[lane] += 1
        return dealt

    def deals(self, task: Any, goal: Any) -> bool:
        """Whether this (task index, goal index) can be dealt; both may be anything."""
        return (task, goal) in self.pairs

    def reseed(self, seed: int) -> None:
        """Nothing here is random."""

    def state(self) -> dict[str, object]:
        """Trials dealt to each environment, and the grid itself, to detect a checkpoint of another one."""
        return {"pairs": [list(pair) for pair in self.pairs], "trials": list(self._trials)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state`; raises ValueError unless the saved grid is this one."""
        if [tuple(pair) for pair in state["pairs"]] != self.pairs or len(state["trials"]) != len(self._trials):
            raise ValueError(
                f"The saved grid is {state['pairs']} for {len(state['trials'])} environments, this one is "
                f"{self.pairs} for {len(self._trials)}; pass the same pairs."
            )
        check_whole("trials of environments", state["trials"], least=0, below=2**62)
        self._trials[:] = state["trials"]


def check_whole(name: str, values: Sequence[Any], *, least: int, below: int) -> None:
    """Raise ValueError unless all ``values`` of a saved state are integers from ``least`` to below ``below``."""
    wrong = [value for value in values if type(value) is not int or not least <= value < below]
    if wrong:
        raise ValueError(f"The saved {name} are from {least} to {below - 1}, but {wrong[0]!r} is among them.")
