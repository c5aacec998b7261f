"""Environments and evaluation beside training, from a recipe's configuration."""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from htrmrl_torchrl import EpisodicStorage, evaluate, keys, make_env
from htrmrl_torchrl.agent.networks import Networks
from htrmrl_torchrl.envs import task_names
from htrmrl_torchrl.envs.benchmarks import is_factory
from htrmrl_torchrl.envs.shares import LaneShare
from htrmrl_torchrl.evaluation.report import evaluation_metrics
from htrmrl_torchrl.parallel.ranks import Ranks
from htrmrl_torchrl.runs.console import best_effort
from htrmrl_torchrl.specs import MismatchError


def training_environment(config: DictConfig, share: LaneShare | None = None) -> EnvBase:
    """The configured environment on the split ``train``; ``share``: of several processes, each of which simulates."""
    settings: dict[str, Any] = {
        "episodes_per_trial": config.env.episodes_per_trial,
        "horizon": config.env.horizon,
        "seed": config.seed,
        "benchmark_seed": config.env.benchmark_seed,
        "num_workers": config.env.num_workers if share is None else 0,
        "worker_timeout": config.env.worker_timeout,
        "backend": config.env.backend,
        "share": share,
        "shortest_trial": config.env.shortest_trial,
        "disguises": list(config.env.disguises),
    }
    if is_factory(config.env.name):
        settings = {name: settings[name] for name in ("episodes_per_trial", "seed")}
    return make_env(config.env.name, split="train", num_envs=config.env.num_envs, **settings)


def check_horizon(config: DictConfig, batch: TensorDictBase, storage: EpisodicStorage) -> None:
    """Raise MismatchError if an episode of a factory's environment exceeds ``env.horizon``, which sizes the storage.
    Checks the episodes that ``storage`` holds with ``batch`` ``[N, T]`` in it.
    """
    frames, lane = storage.table["frames"], storage.table["lane"]
    runs = ~batch["next", keys.DONE][:, -1, 0]  # a running episode has at least one more step
    longest = max(int(frames.max()), int((frames[lane.bincount().cumsum(0) - 1] + runs).max()))
    if longest > config.env.horizon:
        raise MismatchError(
            f"env.horizon is {config.env.horizon} but an episode has at least {longest} steps; make it the most steps "
            f"of an episode, or end episodes there in the factory, StepCounter(max_steps={config.env.horizon})."
        )


def names_of_tasks(config: DictConfig, split: str) -> list[str]:
    """Names of the split's task indices."""
    return [config.env.name] if is_factory(config.env.name) else task_names(config.env.name, split)


def adaptation_episodes(config: DictConfig) -> int:
    """Adaptation episodes of evaluations beside training; default the episodes of a training trial."""
    asked = config.eval.adaptation_episodes
    return int(config.env.episodes_per_trial if asked is None else asked)


LOWEST = -sys.float_info.max  # plain JSON, unlike an infinity


def score_on_val(metrics: dict[str, float]) -> float:
    """The score of the best checkpoint: success on ``val``, or return where the benchmark defines no success."""
    return metrics.get("eval/val_success", metrics.get("eval/val_return", LOWEST))


def evaluate_on_held_out(
    config: DictConfig, networks: Networks, folder: Path, *, frames: int, last: bool, ranks: Ranks | None = None
) -> dict[str, float]:
    """Success on fixed grids of held-out goals (``val``) and tasks (``test``), beside training: ``eval/*``; in the
    ``last`` one the gain from memory, if configured. Uses its own environments and memory and shares only the weights.
    Writes a report of each into ``folder``. Several ``ranks`` share out the environments, and the first one writes.
    """
    metrics: dict[str, float] = {}
    if is_factory(config.env.name):  # its goals are unknown
        return metrics
    for split in ("val", "test"):
        report = evaluate(
            networks,
            config.env.name,
            split=split,
            protocol=config.eval.protocol,
            goals_per_task=config.eval.goals_per_task,
            adaptation_episodes=adaptation_episodes(config),
            horizon=config.env.horizon if config.eval.horizon is None else config.eval.horizon,
            benchmark_seed=config.env.benchmark_seed,
            seed=config.seed,
            num_envs=config.env.num_envs,
            num_workers=config.env.num_workers,
            worker_timeout=config.env.worker_timeout,
            memory_gain=config.eval.memory_gain and last,
            ranks=ranks,
        )
        report.runs[0]["frames"] = frames
        path = folder / f"{split}_{frames:012d}.json"
        if ranks is None or ranks.is_first:
            with best_effort(str(path)):
                folder.mkdir(exist_ok=True)  # without parents: a moved run folder is not created again
                report.save(path)
        metrics |= evaluation_metrics(report)
    return metrics
