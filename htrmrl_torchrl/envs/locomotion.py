"""Three locomotion benchmarks of the meta-RL literature on gymnasium's MuJoCo classes (v5).

===================  =====================================  ===========================================================
name                 hidden goal g                          reward of a step
===================  =====================================  ===========================================================
``HalfCheetah-Dir``  -1 or 1: backward or forward           g v - 0.05 |a|^2
``HalfCheetah-Vel``  a velocity, uniform in [0, 3]          -\\|v - g\\| - 0.05 |a|^2
``Ant-Dir``          a unit vector, uniform in the plane    <g, v> + healthy - 0.5 |a|^2 - 0.0005 |contact forces|^2
===================  =====================================  ===========================================================

v is the body's velocity over the step (along x; in the plane for the ant's torso), a the action. Episodes have 200
steps. Sources: HalfCheetah from TrMRL (Melo 2022, github.com/luckeciano/transformers-metarl:
``envs/metarl/half_cheetah_dir.py``, ``half_cheetah_vel.py``), after MAML (Finn et al. 2017, velocities up to 2);
Ant-Dir from ``ant_rand_direc_2d.py`` of ProMP (Rothfuss et al. 2019, github.com/jonasrothfuss/ProMP).

**Goals.** HalfCheetah-Dir has the same two in all splits: it tests adaptation only. The others draw 50 per split from
the benchmark's seed, so ``val`` and ``test`` have other goals of the same task.

**Success** is not defined in these papers, so there is no ``("next", "success")``: the return is reported and selects
the best checkpoint.

**Deviations.** Observations are gymnasium's: 17 numbers for the cheetah (garage adds the torso's position), 27 for the
ant (ProMP adds clipped contact forces). An unhealthy ant loses the healthy reward (1 per step) but plays on to the end
of the episode; the published one ends.
"""

import importlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from htrmrl_torchrl.envs.divergence import diverged
from htrmrl_torchrl.envs.lanes import Benchmark, BoolArray, FloatArray, IntArray, LaneKind, Picture, check_positive
from htrmrl_torchrl.envs.render import SceneRenderer

HORIZON = 200
GOALS_PER_SPLIT = 50
MAX_VELOCITY = 3.0
_SIZES = {"HalfCheetah": (17, 6), "Ant": (27, 8)}  # of observation and action
_SPLITS = ("train", "val", "test")
_CAMERA = {"distance": 5.0, "azimuth": 90.0, "elevation": -20.0}


class LocomotionLanes:
    """One gymnasium simulator per environment, built at its first reset; the only task has index 0.

    ``goals`` are ``[n, 1]`` directions or velocities, ``[n, 2]`` unit vectors for the ant; a goal index selects a row.

    Example:
        >>> lanes = LocomotionLanes("HalfCheetah-Vel", draw_goals("HalfCheetah-Vel", "train", 0), num_lanes=1)
        >>> lanes.reset(np.array([0]), np.array([0]), np.array([7]), np.array([123])).shape
        (1, 17)
        >>> lanes.close()
    """

    def __init__(self, name: str, goals: npt.NDArray[np.float64], *, num_lanes: int) -> None:
        check_positive(num_lanes=num_lanes)
        self.name, self.goals, self.num_lanes = name, goals, num_lanes
        self.obs_dim, actions = _SIZES[_body(name)]
        self.action_low: FloatArray = np.full(actions, -1.0, dtype=np.float32)
        self.action_high: FloatArray = np.full(actions, 1.0, dtype=np.float32)
        self.divergences = 0
        self._goal = np.zeros((num_lanes, goals.shape[1]))
        self._simulators: list[Any] = [None] * num_lanes
        self._renderers: dict[int, SceneRenderer] = {}

    def reset(self, lanes: IntArray, tasks: IntArray, goals: IntArray, draws: IntArray | None = None) -> FloatArray:
        """Start an episode from gymnasium's random pose and velocities, with the seed ``draws[i]``."""
        self._goal[lanes] = self.goals[goals]
        observation = np.empty((len(lanes), self.obs_dim), dtype=np.float32)
        for row, lane in enumerate(lanes):
            if self._simulators[lane] is None:
                self._simulators[lane] = _simulator(_body(self.name))
            observation[row] = self._simulators[lane].reset(seed=0 if draws is None else int(draws[row]))[0]
        return observation

    def step(self, actions: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Step all environments; success is always False, and gymnasium's end of an episode is ignored."""
        observation = np.empty((self.num_lanes, self.obs_dim), dtype=np.float32)
        reward = np.empty(self.num_lanes, dtype=np.float32)
        for lane, simulator in enumerate(self._simulators):
            observation[lane], _, _, _, info = simulator.step(actions[lane])
            reward[lane] = step_reward(self.name, self._goal[lane], info)
            self.divergences += diverged(simulator.data)
        return observation, reward, np.zeros(self.num_lanes, dtype=np.bool_)

    def render(self, lane: int, *, size: int) -> Picture:
        """A picture [size, size, 3]; RuntimeError before the first reset, RenderingError without OpenGL."""
        simulator = self._simulators[lane]
        if simulator is None:
            raise RuntimeError(f"Environment {lane} has no simulator yet; reset it before it is drawn.")
        renderer = self._renderers.get(lane)
        if renderer is None or renderer.size != size:
            if renderer is not None:
                renderer.close()
            self._renderers[lane] = renderer = SceneRenderer(simulator.model, size=size, camera=_CAMERA)
        return renderer.draw(simulator.data, lookat=simulator.data.body("torso").xpos)

    def close(self) -> None:
        """Close all simulators; calling it twice is harmless."""
        for resource in (*self._renderers.values(), *self._simulators):
            if resource is not None:
                resource.close()
        self._renderers, self._simulators = {}, [None] * self.num_lanes


def step_reward(name: str, goal: npt.NDArray[np.float64], info: dict[str, Any]) -> float:
    """Reward of a step from gymnasium's ``info``; see the table above."""
    if name == "Ant-Dir":
        along = goal[0] * info["x_velocity"] + goal[1] * info["y_velocity"]
        return float(along + info["reward_survive"] + info["reward_ctrl"] + info["reward_contact"])
    velocity = info["x_velocity"]
    forward = goal[0] * velocity if name == "HalfCheetah-Dir" else -abs(velocity - goal[0])
    return float(forward + info["reward_ctrl"])


def draw_goals(name: str, split: str, benchmark_seed: int) -> npt.NDArray[np.float64]:
    """Goals of a split ``[n, 1]``, of Ant-Dir ``[n, 2]``.

    Example:
        >>> draw_goals("HalfCheetah-Dir", "test", 0).tolist()
        [[-1.0], [1.0]]
    """
    rng = np.random.default_rng([benchmark_seed, _SPLITS.index(split)])
    if name == "HalfCheetah-Dir":
        return np.array([[-1.0], [1.0]])
    if name == "HalfCheetah-Vel":
        return rng.uniform(0.0, MAX_VELOCITY, (GOALS_PER_SPLIT, 1))
    direction = rng.normal(size=(GOALS_PER_SPLIT, 2))
    return direction / np.linalg.norm(direction, axis=-1, keepdims=True)


def build_lanes(name: str, goals: npt.NDArray[np.float64], num_lanes: int) -> LocomotionLanes:
    """:class:`LocomotionLanes` with positional arguments; a worker appends the number of environments."""
    return LocomotionLanes(name, goals, num_lanes=num_lanes)


def _lanes(name: str, split: str, horizon: int, benchmark_seed: int) -> LaneKind:
    obs_dim, actions = _SIZES[_body(name)]
    low, high = np.full(actions, -1.0, dtype=np.float32), np.full(actions, 1.0, dtype=np.float32)
    return LaneKind(partial(build_lanes, name, draw_goals(name, split, benchmark_seed)), obs_dim, low, high)


def _body(name: str) -> str:
    return name.partition("-")[0]


def _simulator(body: str) -> Any:
    # Imported here: only processes that simulate need gymnasium's classes.
    if body == "Ant":
        module = importlib.import_module("gymnasium.envs.mujoco.ant_v5")
        return module.AntEnv(terminate_when_unhealthy=False, include_cfrc_ext_in_observation=False)
    return importlib.import_module("gymnasium.envs.mujoco.half_cheetah_v5").HalfCheetahEnv(ctrl_cost_weight=0.05)


def _benchmark(name: str, num_goals: int) -> Benchmark:
    return Benchmark(
        name=name,
        train=(name,),
        test=(name,),
        num_goals=num_goals,
        lanes=partial(_lanes, name),
        default_horizon=HORIZON,
        has_success=False,
        steps_per_second=20.0,
    )


BENCHMARKS: Sequence[Benchmark] = (
    _benchmark("HalfCheetah-Dir", 2),
    _benchmark("HalfCheetah-Vel", GOALS_PER_SPLIT),
    _benchmark("Ant-Dir", GOALS_PER_SPLIT),
)
