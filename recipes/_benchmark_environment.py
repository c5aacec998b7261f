"""Environment steps per second: Meta-World's vector environments, our backends, and physics alone."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

EPISODE = 500  # steps; a measurement is one whole episode on every lane, its reset included


def interleaved(contenders: dict[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """``rounds`` measurements of each contender, which take turns."""
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    with tqdm(total=rounds * len(contenders)) as bar:
        for _ in range(rounds):
            for name, measure in contenders.items():
                bar.set_postfix_str(name)
                measured[name].append(measure())
                bar.update()
    return measured


def ratio(measured: dict[str, list[float]], name: str, reference: str) -> float:
    """Median over the rounds of how much higher ``name`` is than ``reference``."""
    return statistics.median(a / b for a, b in zip(measured[name], measured[reference], strict=True))


def environment(config: DictConfig) -> list[dict[str, Any]]:
    """Steps per second on ML10's training tasks with random actions, an episode of 500 steps at a time."""
    import metaworld

    from htrmrl_torchrl import make_env

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
    for env in built.values():
        if hasattr(env, "call"):
            env.call("sample_tasks")
    rng = np.random.default_rng(0)
    contenders = {name: _play(env, n, rng) for name, env in built.items()}
    contenders["physics alone, 1 process"] = _physics(n, rng)
    measured = interleaved(contenders, rounds=config.rounds)
    for env in built.values():
        env.close()
    sync, asynchronous, *_, physics = contenders
    return [
        {
            "environment": name,
            "steps/s": statistics.median(values),
            "x sync": ratio(measured, name, sync),
            "x async": ratio(measured, name, asynchronous),
            "of physics": ratio(measured, name, physics),
            "measured": values,
        }
        for name, values in measured.items()
    ]


def _play(env: Any, lanes: int, rng: np.random.Generator) -> Callable[[], float]:
    """Steps per second of one episode on all lanes; a gymnasium vector environment or the lanes of one of ours."""
    ours = getattr(env, "_lanes", None)

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

    measure()  # caches, simulators that are built at the first use
    return measure


def _physics(lanes: int, rng: np.random.Generator) -> Callable[[], float]:
    """What is left when all Python is gone: five physics steps per environment step, on the same models."""
    import mujoco

    from htrmrl_torchrl.envs.benchmarks import draw_goals, task_names
    from htrmrl_torchrl.envs.metaworld import MetaWorldLanes

    built = MetaWorldLanes(task_names("ML10"), draw_goals("ML10", "train", 0), num_lanes=lanes, backend="official")
    built.reset(np.arange(lanes), np.arange(lanes) % 10, np.zeros(lanes, dtype=np.int64))
    simulators = built._simulators

    def measure() -> float:
        moves = rng.uniform(-0.01, 0.01, (EPISODE, lanes, 3))
        start = time.perf_counter()
        for move in moves:
            for simulator, by in zip(simulators, move, strict=True):
                data = simulator.data
                data.mocap_pos[0] = np.clip(data.mocap_pos[0] + by, simulator.mocap_low, simulator.mocap_high)
                data.ctrl[:] = 0.1
                mujoco.mj_step(simulator.model, data, nstep=simulator.frame_skip)
        return lanes * EPISODE / (time.perf_counter() - start)

    return measure
