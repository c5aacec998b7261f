"""`recipes/look_inside.py` without its first lines: play, look, measure, draw, and write one page."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from htrmrl_torchrl.envs.benchmarks import SPLITS
from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.runs.console import command_line
from recipes.configuration.find import check_checkpoints, goals_of, one_checkpoint, run_folder_of
from recipes.configuration.paths import check_folder, writing
from recipes.configuration.rules import check_device, check_relations, check_values, check_words
from recipes.configuration.sizes import fits_memory, trial_needs

if TYPE_CHECKING:
    from htrmrl_torchrl.agent.networks import Networks
    from htrmrl_torchrl.inspection.recording import Recording

TRAINED, UNTRAINED = "trained", "untrained"


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """What was inspected and how: tasks and trials by split, networks by `TRAINED` and `UNTRAINED`."""

    checkpoint: str
    frames: int
    benchmark: str
    tasks: dict[str, list[str]]
    goals_per_task: int
    trials_per_goal: dict[str, int]
    episodes: int
    horizon: int
    seed: int
    benchmark_seed: int
    command: str
    versions: dict[str, str]
    networks: dict[str, "Networks"]


def check(config: DictConfig, defaults: DictConfig) -> None:
    """Raise UserError for the first fault that shows before a checkpoint is read."""
    check_values(config, defaults)
    check_words(config, {"split": SPLITS})
    check_device(config.device)
    needs = trial_needs(episodes=config.episodes or 1, horizon=config.horizon or 1, trials=config.trials_per_goal or 1)
    check_relations([fits_memory(needs)])


def run(config: DictConfig) -> None:
    """Look inside a trained agent, and inside an untrained one of the same sizes as the control."""
    path = one_checkpoint(config.checkpoint)
    folder = Path(config.out) if config.out else run_folder_of(path) / "inspection"
    check_folder("out", folder)
    check_checkpoints([path])
    from htrmrl_torchrl.checkpoints.files import write_whole
    from recipes.inside.page import write_inspection

    started = time.perf_counter()
    try:
        inspected, recordings = _play(config, path)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    print(_table(recordings))
    with writing(f"the inspection in {folder}"):
        numbers = write_inspection(folder, inspected, recordings)
        write_whole(folder / "inspection.json", json.dumps(numbers, indent=2))
    print(f"{time.perf_counter() - started:.0f} s; open {folder / 'index.html'} in a browser")


def _table(recordings: dict[str, dict[str, "Recording"]]) -> str:
    """Success by episode, which would otherwise be lost with a disk that takes no figures."""
    return "\n".join(
        f"success on {split}, {label + ',':10} by episode "
        + " ".join(f"{share:.2f}" for share in recording.success.double().mean(0).tolist())
        for split, by_label in recordings.items()
        for label, recording in by_label.items()
    )


def _play(config: DictConfig, path: Path) -> tuple[Inspected, dict[str, dict[str, "Recording"]]]:
    """What was inspected and how, and recordings by split and by network."""
    import torch

    from htrmrl_torchrl.agent.networks import build_networks, load_networks
    from htrmrl_torchrl.checkpoints.checkpoint import read_component, read_environment
    from htrmrl_torchrl.checkpoints.versions import versions
    from htrmrl_torchrl.envs import num_goals, task_names
    from htrmrl_torchrl.envs.factory import resolve_horizon

    trained = load_networks(path, trust=config.trust)
    settings, progress = read_environment(path), read_component(path, "progress")
    benchmark, benchmark_seed = goals_of(config, [path])
    goals = config.goals_per_task or min(4, num_goals(benchmark))
    if goals > num_goals(benchmark):
        raise ValueError(f"goals_per_task is {goals} but must be at most {num_goals(benchmark)} in {benchmark}.")
    before = settings.horizon if benchmark == settings.name else None
    tasks = {split: task_names(benchmark, split) for split in dict.fromkeys(["train", config.split])}
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        untrained = build_networks(**read_component(path, "agent"))
    inspected = Inspected(
        checkpoint=str(path),
        frames=progress["frames"],
        benchmark=benchmark,
        tasks=tasks,
        goals_per_task=goals,
        trials_per_goal={n: config.trials_per_goal or (8 if len(names) == 1 else 1) for n, names in tasks.items()},
        episodes=config.episodes or settings.episodes_per_trial,
        horizon=resolve_horizon(benchmark, config.horizon or before),
        seed=config.seed,
        benchmark_seed=benchmark_seed,
        command=command_line(),
        versions=versions(),
        networks={TRAINED: trained, UNTRAINED: untrained},
    )
    recordings = {
        split: {label: _record(config, inspected, networks, split) for label, networks in inspected.networks.items()}
        for split in tasks
    }
    return inspected, recordings


def _record(config: DictConfig, inspected: Inspected, networks: "Networks", split: str) -> "Recording":
    from htrmrl_torchrl import make_env
    from htrmrl_torchrl.evaluation import goal_grid
    from htrmrl_torchrl.evaluation.evaluator import check_sizes
    from htrmrl_torchrl.inspection.recording import record_trials

    grid = goal_grid(num_tasks=len(inspected.tasks[split]), goals_per_task=inspected.goals_per_task)
    pairs = [pair for pair in grid for _ in range(inspected.trials_per_goal[split])]
    lanes = min(config.num_envs, len(pairs))
    env = make_env(
        inspected.benchmark,
        split=split,
        num_envs=lanes,
        num_workers=min(config.num_workers, lanes),
        episodes_per_trial=inspected.episodes,
        horizon=inspected.horizon,
        benchmark_seed=inspected.benchmark_seed,
        pairs=pairs,
    )
    try:
        networks.encoder.to(config.device), networks.actor.to(config.device)
        check_sizes(networks.encoder, env)
        every = max(1, inspected.horizon // config.looks)
        return record_trials(networks, env, trials=len(pairs), every=every, seed=config.seed)
    finally:
        env.close()
