"""Environment steps per second: Meta-World's vector environments, our backends, and physics alone."""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from omegaconf import DictConfig

from htrmrl_torchrl.envs import TrialEnv
from htrmrl_torchrl.envs.lanes import BoolArray, FloatArray, IntArray, Picture
from htrmrl_torchrl.progress import progress_bar

EPISODE = 500  # steps; a measurement is one episode in every environment, its reset included


def interleaved(contenders: dict[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """``rounds`` measurements of each contender, in turns."""
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    with progress_bar(total=rounds * len(contenders)) as bar:
        for _ in range(rounds):
            for name, measure in contenders.items():
                bar.set_postfix_str(name, refresh=sys.stderr.isatty())
                measured[name].append(measure())
                bar.update()
    return measured


def ratio(measured: dict[str, list[float]], name: str, reference: str) -> float:
    """Median over the rounds of the ratio of ``name`` to ``reference``."""
    return statistics.median(a / b for a, b in zip(measured[name], measured[reference], strict=True))


def environment(config: DictConfig) -> list[dict[str, Any]]:
    """Steps per second on ML10's training tasks with random actions, in episodes of 500 steps."""
    import metaworld

    from htrmrl_torchrl import make_env
    from htrmrl_torchrl.envs.workers import WorkerLanes

    n, workers = config.num_envs, config.num_workers
    vector = {"seed": 0, "meta_batch_size": n, "split": "train", "task_select": "pseudorandom"}
    ours = {"split": "train", "num_envs": n, "episodes_per_trial": 10_000}
    built: dict[str, Any] = {
        "Meta-World, SyncVectorEnv, 1 process": metaworld.make_ml_envs("ML10", vector_strategy="sync", **vector),
        f"Meta-World, AsyncVectorEnv, {n} processes": metaworld.make_ml_envs("ML10", vector_strategy="async", **vector),
        "backend=official, 1 process": make_env("ML10", backend="official", **ours),
        "backend=fast, 1 process": make_env("ML10", backend="fast", **ours),
        f"backend=fast, {workers} workers": make_env("ML10", backend="fast", num_workers=workers, **ours),
    }
    physics = Physics(n)
    both = WorkerLanes(
        Physics,
        num_lanes=n,
        num_workers=workers,
        obs_dim=physics.obs_dim,
        action_low=physics.action_low,
        action_high=physics.action_high,
    )
    for env in built.values():
        if hasattr(env, "call"):
            env.call("sample_tasks")
    rng = np.random.default_rng(0)
    built |= {f"physics alone, {workers} workers": both, "physics alone, 1 process": physics}
    contenders = {name: _play(env, n, rng) for name, env in built.items()}
    measured = interleaved(contenders, rounds=config.rounds)
    for env in built.values():
        env.close()
    sync, asynchronous, *_, ceiling = contenders
    return [
        {
            "environment": name,
            "steps/s": statistics.median(values),
            "x sync": ratio(measured, name, sync),
            "x async": ratio(measured, name, asynchronous),
            "of physics": ratio(measured, name, ceiling),
            "measured": values,
        }
        for name, values in measured.items()
    ]


def _play(env: Any, lanes: int, rng: np.random.Generator) -> Callable[[], float]:
    """Measures steps per second of one episode in all environments (gymnasium's, ours, or simulators alone)."""
    ours = None if hasattr(env, "call") else env._lanes if isinstance(env, TrialEnv) else env

    def measure() -> float:
        actions = rng.uniform(-1, 1, (EPISODE, lanes, 4)).astype(np.float32)
        start = time.perf_counter()
        if ours is None:
            env.reset()
            for action in actions[:-1]:  # the last step would reset by itself
                env.step(action)
        else:
            ours.reset(np.arange(lanes), np.arange(lanes) % 10, np.zeros(lanes, dtype=np.int64))
            for action in actions[:-1]:
                ours.step(action)
        return lanes * (EPISODE - 1) / (time.perf_counter() - start)

    measure()  # warm-up: caches and simulators are built at first use
    return measure


class Physics:
    """The upper bound of speed: environments that only run the physics of ML10's training tasks, on the same models."""

    obs_dim, divergences = 1, 0
    action_low, action_high = np.full(4, -1, np.float32), np.full(4, 1, np.float32)

    def __init__(self, num_lanes: int) -> None:
        from htrmrl_torchrl.envs.benchmarks import draw_goals, task_names
        from htrmrl_torchrl.envs.metaworld import MetaWorldLanes

        self.num_lanes = num_lanes
        goals = draw_goals("ML10", "train", 0)
        self._lanes = MetaWorldLanes(task_names("ML10"), goals, num_lanes=num_lanes, backend="official")
        self._lanes.reset(np.arange(num_lanes), np.arange(num_lanes) % 10, np.zeros(num_lanes, dtype=np.int64))

    def reset(self, lanes: IntArray, tasks: IntArray, goals: IntArray, draws: IntArray | None = None) -> FloatArray:
        return np.zeros((len(lanes), self.obs_dim), np.float32)

    def step(self, actions: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
        """The hand follows the action and MuJoCo steps; no observation, reward or success is computed."""
        import mujoco

        for simulator, action in zip(self._lanes._simulators, actions, strict=True):
            data = simulator.data
            moved = data.mocap_pos[0] + action[:3] * simulator.action_scale
            data.mocap_pos[0] = np.clip(moved, simulator.mocap_low, simulator.mocap_high)
            data.ctrl[:] = action[3], -action[3]
            mujoco.mj_step(simulator.model, data, nstep=simulator.frame_skip)
        n = self.num_lanes
        return np.zeros((n, self.obs_dim), np.float32), np.zeros(n, np.float32), np.zeros(n, np.bool_)

    def render(self, lane: int, *, size: int) -> Picture:
        raise ValueError(f"Physics alone has no picture of environment {lane} in {size} pixels.")

    def close(self) -> None:
        self._lanes.close()
