"""Record trials of a trained agent as videos: ``python recipes/video.py checkpoint=RUN_OR_CHECKPOINT split=test``."""

from contextlib import closing
from pathlib import Path
from typing import get_args

from omegaconf import DictConfig

from htrmrl_torchrl.envs.benchmarks import SPLITS
from htrmrl_torchrl.evaluation.protocols import PROTOCOLS, Actions
from htrmrl_torchrl.extras import require
from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.runs.signals import ending_at_once
from recipes.configuration.compose import run_recipe
from recipes.configuration.find import check_checkpoints, goals_of, one_checkpoint, run_folder_of
from recipes.configuration.paths import check_folder, writing
from recipes.configuration.rules import check_values, check_words


def check(config: DictConfig, defaults: DictConfig) -> None:
    """Raise UserError for the first error that shows before a checkpoint is read."""
    check_values(config, defaults)
    words = {"split": SPLITS, "protocol": PROTOCOLS, "evaluation_actions": get_args(Actions), "format": ("mp4", "gif")}
    check_words(config, words)


def run(config: DictConfig) -> None:
    """Record one trial of each task, with the score of its episodes written on the pictures."""
    require("video", "PIL", "imageio", "imageio_ffmpeg")
    path = one_checkpoint(config.checkpoint)
    folder = Path(config.out) if config.out else run_folder_of(path) / "videos"
    check_folder("out", folder)
    check_checkpoints([path])
    try:
        _record_all(config, path, folder)
    except (RuntimeError, ValueError) as error:  # no OpenGL; an unknown benchmark; a goal that it does not have
        raise UserError(str(error)) from error


def _record_all(config: DictConfig, path: Path, folder: Path) -> None:
    from htrmrl_torchrl.agent.networks import acting_policy, load_networks  # late: torch takes a while
    from htrmrl_torchrl.checkpoints.checkpoint import read_component
    from htrmrl_torchrl.envs import num_goals, task_names
    from htrmrl_torchrl.evaluation import ExactPolicy, record_trial, write_video
    from htrmrl_torchrl.progress import progress_bar
    from htrmrl_torchrl.runs.loggers import EventFile

    benchmark, benchmark_seed = goals_of(config, [path])
    names = task_names(benchmark, config.split)
    if unknown := sorted(set(config.tasks or ()) - set(names)):
        raise UserError(f"tasks has {unknown[0]!r} but {benchmark} has {', '.join(names)} in its split {config.split}")
    if config.goal >= num_goals(benchmark):
        raise UserError(f"goal is {config.goal} but must be below {num_goals(benchmark)}, the goals of each task")
    protocol = PROTOCOLS[config.protocol].changed(
        adaptation_episodes=config.adaptation_episodes,
        evaluation_episodes=config.evaluation_episodes,
        evaluation_actions=config.evaluation_actions,
    )
    policy = ExactPolicy(acting_policy(load_networks(path, trust=config.trust), seed=config.seed))
    frames = read_component(path, "progress")["frames"]
    with writing(f"{folder / 'tensorboard'}"):
        log = EventFile(folder / "tensorboard")
    with closing(log):
        for name in progress_bar(iterable=config.tasks or names, desc="videos"):
            video = record_trial(
                policy,
                benchmark,
                protocol,
                split=config.split,
                task=names.index(name),
                goal=config.goal,
                horizon=config.horizon,
                seed=config.seed,
                benchmark_seed=benchmark_seed,
                every=config.every,
                size=config.size,
            )
            file = folder / f"{config.split}_{name}_goal{config.goal}_seed{config.seed}_{frames:012d}.{config.format}"
            with writing(f"{file}"):
                write_video(video, file)
                log.add_video(f"video/{config.split}/{name}", video.frames, frames=frames, fps=video.fps)
            print(f"{file}: success in {sum(video.success)} of {len(video.success)} episodes", flush=True)


if __name__ == "__main__":
    with ending_at_once():
        run_recipe(run, config_name="video", check=check)
