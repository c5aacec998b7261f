"""Evaluate trained agents: ``python recipes/evaluate.py checkpoint=RUN_OR_CHECKPOINT benchmark=ML10 split=test``.

Prints a table and leaves a report (JSON) and two figures. A quoted pattern evaluates several runs as one report, with
an interval over runs: ``checkpoint='runs/ml10_ppo_seed*'``.
"""

import hashlib
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from omegaconf import DictConfig

from htrmrl_torchrl.envs.benchmarks import SPLITS
from htrmrl_torchrl.evaluation.protocols import PROTOCOLS, Actions
from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.runs.console import command_line
from htrmrl_torchrl.runs.signals import ending_at_once
from recipes.configuration.compose import run_recipe
from recipes.configuration.find import (
    check_checkpoints,
    find_checkpoints,
    goals_of,
    run_folder_of,
    trained_trial_lengths,
)
from recipes.configuration.paths import check_folder, safe_name, writing
from recipes.configuration.relations import longer_trials
from recipes.configuration.rules import check_device, check_relations, check_values, check_words
from recipes.configuration.sizes import fits_memory, trial_needs

if TYPE_CHECKING:
    from htrmrl_torchrl.evaluation import EvaluationReport


def check(config: DictConfig, defaults: DictConfig) -> None:
    """Raise UserError for the first error that shows before a checkpoint is read."""
    check_values(config, defaults)
    actions = get_args(Actions)
    check_words(config, {"split": SPLITS, "protocol": PROTOCOLS, "evaluation_actions": actions})
    check_device(config.device)
    episodes = (config.adaptation_episodes or 0) + (config.evaluation_episodes or 1)
    check_relations([fits_memory(trial_needs(episodes=episodes, horizon=config.horizon or 1, trials=1))])


def run(config: DictConfig) -> None:
    """Evaluate checkpoints on a benchmark's held-out goals or tasks."""
    paths = find_checkpoints(config.checkpoint)
    folder = Path(config.out) if config.out else run_folder_of(paths[0]) / "evaluations"
    check_folder("out", folder)
    check_checkpoints(paths)
    started = time.perf_counter()
    try:
        from htrmrl_torchrl.envs.benchmarks import is_metaworld
        from htrmrl_torchrl.evaluation import evaluate

        benchmark, benchmark_seed = goals_of(config, paths)
        if config.stages and not is_metaworld(benchmark):
            raise UserError(
                f"stages is true but {benchmark} is not of Meta-World, whose simulators say how far an episode came: "
                "write stages=false"
            )
    except (RuntimeError, ValueError, FileNotFoundError) as error:  # a wrong MUJOCO_GL shows in the first import
        raise UserError(str(error)) from error
    try:
        report = evaluate(
            paths,
            benchmark,
            split=config.split,
            protocol=config.protocol,
            goals_per_task=config.goals_per_task,
            adaptation_episodes=config.adaptation_episodes,
            evaluation_episodes=config.evaluation_episodes,
            evaluation_actions=config.evaluation_actions,
            horizon=config.horizon,
            benchmark_seed=benchmark_seed,
            seed=config.seed,
            device=config.device,
            num_envs=config.num_envs,
            num_workers=config.num_workers,
            worker_timeout=config.worker_timeout,
            memory_gain=config.memory_gain,
            progress=True,
            command=command_line(),
            trust=config.trust,
        )
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    notes = longer_trials(report.protocol.trial_length, trained=trained_trial_lengths(paths))
    shown = "\n".join([str(report), *notes])
    print(f"\n{shown}\n\n{time.perf_counter() - started:.0f} s", flush=True)  # even if no file can be written
    stem = folder / _name(config, report, paths)
    with writing(f"the evaluation in {folder}"):
        _write(report, paths, stem)
    if config.stages:
        _write_stages(config, paths[0], benchmark, report, stem)
    print(f"everything is in {stem}*")


def _write(report: "EvaluationReport", paths: Sequence[Path], stem: Path) -> None:
    from htrmrl_torchrl.evaluation import plot_adaptation, plot_tasks
    from htrmrl_torchrl.media import as_written, write_figure

    label = f"{len(paths)} runs" if len(paths) > 1 else as_written(paths[0].name)
    report.save(stem.with_name(f"{stem.name}.json"))
    write_figure(plot_tasks({label: report}), stem.with_name(f"{stem.name}_by_task.png"))
    if report.success.shape[-1] > 1:
        write_figure(plot_adaptation({label: report}), stem.with_name(f"{stem.name}_by_episode.png"))


def _name(config: DictConfig, report: "EvaluationReport", paths: Sequence[Path]) -> str:
    """Common beginning of all file names."""
    own = config.out is None and len(paths) == 1 and paths[0].parent.name == "checkpoints"
    rules = report.protocol
    episodes = f"{rules.goals_per_task}goals_{rules.adaptation_episodes}+{rules.evaluation_episodes}episodes"
    which = f"{report.runs[0]['frames']:012d}" if len(paths) == 1 else f"{len(paths)}runs"
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", report.benchmark)
    name = name if len(name) <= 100 else safe_name(report.benchmark)
    return f"{name}_{config.split}_{rules.name}_{episodes}_seed{config.seed}_{which}{_unusual(report, own=own)}"


def _unusual(report: "EvaluationReport", *, own: bool) -> str:
    """What else distinguishes this report in its folder, for its name; ``own``: the folder is this run's own."""
    from htrmrl_torchrl.envs.benchmarks import find_benchmark

    actions, horizon = report.protocol.evaluation_actions, report.horizon
    parts = {
        f"horizon{horizon}": horizon != find_benchmark(report.benchmark).default_horizon,
        actions: actions != PROTOCOLS[report.protocol.name].evaluation_actions,
        f"goals{report.benchmark_seed}": report.benchmark_seed != 0,
        "memory_gain": report.without_memory is not None,
        _digest(report): not own,
    }
    return "".join(f"_{part}" for part, shown in parts.items() if shown)


def _digest(report: "EvaluationReport") -> str:
    """Eight characters of a checkpoint's SHA-256, or of a hash over several."""
    first, *others = [str(run["sha256"]) for run in report.runs]
    return (hashlib.sha256("".join([first, *others]).encode()).hexdigest() if others else first)[:8]


def _write_stages(config: DictConfig, checkpoint: Path, benchmark: str, report: "EvaluationReport", stem: Path) -> None:
    """Progress of the evaluation episodes, by task; the trials are played once more, in this process."""
    from htrmrl_torchrl.agent.networks import acting_policy, load_networks
    from htrmrl_torchrl.checkpoints.files import write_whole
    from htrmrl_torchrl.evaluation import ExactPolicy
    from htrmrl_torchrl.evaluation.stages import play_stages

    stages = play_stages(
        ExactPolicy(acting_policy(load_networks(checkpoint, trust=config.trust), seed=config.seed)).to(config.device),
        benchmark,
        report.protocol,
        split=config.split,
        horizon=report.horizon,
        benchmark_seed=report.benchmark_seed,
        seed=config.seed,
        num_envs=config.num_envs,
        progress=True,
    )
    print(f"\n{stages}", flush=True)
    with writing(f"{stem}_stages.json"):
        write_whole(stem.with_name(f"{stem.name}_stages.json"), json.dumps(stages.by_task(), indent=2))


if __name__ == "__main__":
    with ending_at_once():
        run_recipe(run, config_name="evaluate", check=check)
