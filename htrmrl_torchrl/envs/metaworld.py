"""Meta-World's environment classes as `Lanes`, without its wrappers.

The goal is hidden (``partially_observable=True``): observations have 39 numbers, the last three always zero. Simulators
(20 MB each) are pooled: a new task in an environment takes an idle simulator of that task if there is one. A reused
simulator behaves exactly like a new one; ``tests/envs/test_metaworld.py`` checks this for all 50 tasks.
"""

import pickle
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from htrmrl_torchrl.envs.divergence import diverged
from htrmrl_torchrl.envs.lanes import BoolArray, FloatArray, IntArray, Layout, Picture, check_choice
from htrmrl_torchrl.envs.render import SimulatorRenderers

Backend = Literal["fast", "official"]
BACKENDS: tuple[str, ...] = get_args(Backend)
MAX_HORIZON = 500  # metaworld raises in step() past SawyerXYZEnv.max_path_length
OBS_DIM = 39
# Hand, gripper, position and orientation of two objects; the same of the step before; the goal, which is hidden.
LAYOUT = Layout(
    positions=tuple((i, i + 1, i + 2) for i in (0, 4, 11, 18, 22, 29)),
    exchangeable=tuple((tuple(range(i, i + 7)), tuple(range(i + 7, i + 14))) for i in (4, 22)),
    orientations=(*range(7, 11), *range(14, 18), *range(25, 29), *range(32, 36)),
)


class MetaWorldLanes:
    """Meta-World simulators in this process: one per environment, built at its first reset, and idle ones in a pool.

    Args:
        task_names: Meta-World names; a task index selects one.
        goals: per task the goal vectors ("rand_vec") ``[num_goals, d]``; a goal index selects a row.
        num_lanes: N.
        backend: ``fast`` (`htrmrl_torchrl.envs.fast`) or ``official``, with the same trajectories; else ValueError.

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
        self.infos: list[dict[str, Any]] = [{}] * num_lanes  # Meta-World's info of each environment's last step

    def reset(self, lanes: IntArray, tasks: IntArray, goals: IntArray, draws: IntArray | None = None) -> FloatArray:
        """Starts an episode of ``(tasks[i], goals[i])`` in environment ``lanes[i]``; returns ``[len(lanes), 39]``."""
        assignments = [(int(lane), int(task), int(goal)) for lane, task, goal in zip(lanes, tasks, goals, strict=True)]
        for lane, task, _ in assignments:  # all return theirs before any takes one: swaps need no third simulator
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
        """Step all environments with ``actions`` [N, 4]; Meta-World's end-of-episode flags are ignored."""
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
        """A picture [size, size, 3]; RuntimeError before the first reset, RenderingError without OpenGL."""
        simulator = self._simulators[lane]
        if simulator is None:
            raise RuntimeError(f"Environment {lane} has no simulator yet; reset it before it is drawn.")
        return self._renderers.draw(simulator, size=size)

    def close(self) -> None:
        self._renderers.close()
        for simulator in [*self._simulators, *(s for idle in self._pool.values() for s in idle)]:
            if simulator is not None:
                simulator.close()
        self._simulators = [None] * self.num_lanes
        self._tasks = [-1] * self.num_lanes
        self._pool = {task: [] for task in self._pool}

    def _build(self, task: int) -> Any:
        # Imported here: only processes that simulate need the classes.
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
    """:class:`MetaWorldLanes` with positional arguments; a worker appends the number of environments."""
    return MetaWorldLanes(task_names, goals, num_lanes=num_lanes, backend=backend)


def _set_task(simulator: Any, name: str, rand_vec: npt.NDArray[np.float64]) -> None:
    from metaworld.types import Task

    data = {"rand_vec": rand_vec, "env_cls": _environment_class(name), "partially_observable": True}
    simulator.set_task(Task(env_name=name, data=pickle.dumps(data)))


def _environment_class(name: str) -> Any:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return ALL_V3_ENVIRONMENTS[name]
