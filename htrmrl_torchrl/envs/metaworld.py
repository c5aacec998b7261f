"""Lanes over Meta-World's environment classes, without its wrappers.

Backend ``official`` steps those classes as they are; ``fast`` steps subclasses of them that compute the same several
times as fast (:mod:`htrmrl_torchrl.envs.fast`).

The goal is hidden (``partially_observable=True``): observations have 39 numbers, the last three always zero. Simulators
are pooled: a lane that changes task takes an idle simulator of that task before a new one (20 MB) is built.
A reused simulator plays exactly what a fresh one would; ``tests/envs/test_metaworld.py`` shows it for all 50 tasks.
"""

import pickle
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from htrmrl_torchrl.envs.divergence import diverged
from htrmrl_torchrl.envs.lanes import BoolArray, FloatArray, IntArray, Picture, check_choice
from htrmrl_torchrl.envs.render import SimulatorRenderers

Backend = Literal["fast", "official"]
BACKENDS: tuple[str, ...] = get_args(Backend)
MAX_HORIZON = 500  # metaworld raises in step() past SawyerXYZEnv.max_path_length
OBS_DIM = 39


class MetaWorldLanes:
    """Meta-World simulators in this process, one per lane, plus those idle in the pool.

    Simulators are built when a lane first needs one, so building the lanes is free.

    Args:
        task_names: Meta-World names; a task index counts in this list.
        goals: per task the ``[num_goals, d]`` goal vectors ("rand_vec") that a goal index counts in.
        num_lanes: N.
        backend: ``fast``, or ``official`` for Meta-World's own code; the trajectories are the same.

    Raises:
        ValueError: for an unknown backend.

    Example:
        >>> from htrmrl_torchrl.envs.benchmarks import draw_goals
        >>> lanes = MetaWorldLanes(["reach-v3"], draw_goals("ML1:reach", "train", 0), num_lanes=1)
        >>> lanes.reset(np.array([0]), np.array([0]), np.array([7])).shape
        (1, 39)
        >>> lanes.close()
    """

    obs_dim = OBS_DIM
    action_low: FloatArray = np.full(4, -1.0, dtype=np.float32)
    action_high: FloatArray = np.full(4, 1.0, dtype=np.float32)

    def __init__(
        self,
        task_names: Sequence[str],
        goals: Sequence[npt.NDArray[np.float64]],
        *,
        num_lanes: int,
        backend: str = "fast",
    ) -> None:
        check_choice(Backend, backend=backend)
        self._backend = backend
        self.task_names, self.goals, self.num_lanes = list(task_names), list(goals), num_lanes
        self._simulators: list[Any] = [None] * num_lanes
        self._tasks = [-1] * num_lanes
        self._pool: dict[int, list[Any]] = {task: [] for task in range(len(self.task_names))}
        self._renderers = SimulatorRenderers()
        self.divergences = 0
        self.infos: list[dict[str, Any]] = [{}] * num_lanes  # what Meta-World says of each lane's last step

    def reset(self, lanes: IntArray, tasks: IntArray, goals: IntArray, draws: IntArray | None = None) -> FloatArray:
        """Start an episode of ``(tasks[i], goals[i])`` on lane ``lanes[i]``; returns ``[len(lanes), 39]``."""
        assignments = [(int(lane), int(task), int(goal)) for lane, task, goal in zip(lanes, tasks, goals, strict=True)]
        for lane, task, _ in assignments:  # first all give back, then all take: so swaps need no third simulator
            if self._tasks[lane] not in (task, -1):
                self._pool[self._tasks[lane]].append(self._simulators[lane])
                self._simulators[lane] = None
        observation = np.empty((len(assignments), OBS_DIM), dtype=np.float32)
        for row, (lane, task, goal) in enumerate(assignments):
            if self._simulators[lane] is None:
                self._simulators[lane] = self._pool[task].pop() if self._pool[task] else self._build(task)
                self._tasks[lane] = task
            self._set_goal(self._simulators[lane], task, goal)
            observation[row] = self._simulators[lane].reset()[0]
        return observation

    def step(self, actions: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Step all lanes with ``actions`` [N, 4]; Meta-World's own end-of-episode flags are ignored."""
        observation = np.empty((self.num_lanes, OBS_DIM), dtype=np.float32)
        reward = np.empty(self.num_lanes, dtype=np.float32)
        success = np.empty(self.num_lanes, dtype=np.bool_)
        for lane, simulator in enumerate(self._simulators):
            observation[lane], reward[lane], _, _, info = simulator.step(actions[lane])
            success[lane] = info["success"] > 0
            self.infos[lane] = info
            self.divergences += diverged(simulator.data)
        return observation, reward, success

    def render(self, lane: int, *, size: int) -> Picture:
        """A picture [size, size, 3] of what ``lane`` plays; disturbs nothing. Needs OpenGL, see ``opengl.py``.

        Raises:
            RenderingError: if no OpenGL backend works.
            RuntimeError: if the lane has not been reset yet.
        """
        simulator = self._simulators[lane]
        if simulator is None:
            raise RuntimeError(f"Lane {lane} has no simulator yet; reset it before it is drawn.")
        return self._renderers.draw(simulator, size=size)

    def close(self) -> None:
        """Close all simulators, the idle ones too."""
        self._renderers.close()
        for simulator in [*self._simulators, *(s for idle in self._pool.values() for s in idle)]:
            if simulator is not None:
                simulator.close()
        self._simulators = [None] * self.num_lanes
        self._tasks = [-1] * self.num_lanes
        self._pool = {task: [] for task in self._pool}

    def _build(self, task: int) -> Any:
        # Imported here: a process that only decides which lane plays what needs no simulator.
        if self._backend == "fast":
            from htrmrl_torchrl.envs.fast import fast_simulator

            return fast_simulator(self.task_names[task])
        return _environment_class(self.task_names[task])()

    def _set_goal(self, simulator: Any, task: int, goal: int) -> None:
        if self._backend == "fast":
            simulator.set_goal(self.goals[task][goal])
        else:
            _set_task(simulator, self.task_names[task], self.goals[task][goal])


def build_lanes(
    task_names: list[str], goals: list[npt.NDArray[np.float64]], backend: str, num_lanes: int
) -> MetaWorldLanes:
    """:class:`MetaWorldLanes` by position, as a worker calls its builder: the number of lanes comes last."""
    return MetaWorldLanes(task_names, goals, num_lanes=num_lanes, backend=backend)


def _set_task(simulator: Any, name: str, rand_vec: npt.NDArray[np.float64]) -> None:
    from metaworld.types import Task

    data = {"rand_vec": rand_vec, "env_cls": _environment_class(name), "partially_observable": True}
    simulator.set_task(Task(env_name=name, data=pickle.dumps(data)))


def _environment_class(name: str) -> Any:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return ALL_V3_ENVIRONMENTS[name]
