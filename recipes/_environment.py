"""From a recipe's configuration to environments and to success on held-out goals."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from htrmrl_torchrl import make_env
from htrmrl_torchrl.agent import Networks, acting_policy
from htrmrl_torchrl.envs import task_names
from htrmrl_torchrl.envs.factory import is_dotted_path
from htrmrl_torchrl.evaluation import goal_grid, play_trials, success_metrics


def environment(config: DictConfig, *, split: str, num_envs: int, **changes: Any) -> EnvBase:
    """The environment of one split; ``changes`` go to `make_env` in place of what the configuration says."""
    settings = {
        "episodes_per_trial": config.env.episodes_per_trial,
        "horizon": config.env.horizon,
        "seed": config.seed,
        "benchmark_seed": config.env.benchmark_seed,
        "num_workers": min(config.env.num_workers, num_envs),
        "backend": config.env.backend,
    }
    if is_dotted_path(config.env.name):
        settings = {name: settings[name] for name in ("episodes_per_trial", "seed")}
    return make_env(config.env.name, split=split, num_envs=num_envs, **(settings | changes))


def names_of_tasks(config: DictConfig, split: str) -> list[str]:
    """What the split's task indices stand for."""
    return [config.env.name] if is_dotted_path(config.env.name) else task_names(config.env.name, split)


class Evaluator:
    """Success on fixed grids of held-out goals (``val``) and held-out tasks (``test``), beside training.

    It has environments and a memory of its own; only the weights are shared.
    """

    def __init__(self, config: DictConfig, networks: Networks) -> None:
        self._config = config
        self._policy = acting_policy(networks, seed=config.seed)
        self._envs: dict[str, EnvBase] = {}
        self.adaptation_episodes = config.eval.adaptation_episodes
        if self.adaptation_episodes is None:
            self.adaptation_episodes = config.env.episodes_per_trial

    def __call__(self, folder: Path, *, frames: int) -> dict[str, float]:
        """Plays both grids, writes a report of each into ``folder`` and returns ``eval/*``."""
        metrics: dict[str, float] = {}
        if is_dotted_path(self._config.env.name):  # a foreign environment has no goals to make a grid of
            return metrics
        for split in ("val", "test"):
            names = names_of_tasks(self._config, split)
            outcomes = play_trials(
                self._policy,
                self._env(split, len(names)),
                adaptation_episodes=self.adaptation_episodes,
                seed=self._config.seed,
            )
            metrics |= success_metrics(outcomes, names, split=split)
            self._write(folder, split, frames, names, outcomes)
        return metrics

    def _env(self, split: str, tasks: int) -> EnvBase:
        if split not in self._envs:
            grid = goal_grid(num_tasks=tasks, goals_per_task=self._config.eval.goals_per_task)
            self._envs[split] = environment(
                self._config,
                split=split,
                num_envs=len(grid),
                pairs=grid,
                episodes_per_trial=self.adaptation_episodes + 1,
            )
        return self._envs[split]

    def _write(self, folder: Path, split: str, frames: int, names: list[str], outcomes: TensorDictBase) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        report = {
            "protocol": self._config.eval.protocol,
            "benchmark": self._config.env.name,
            "split": split,
            "frames": frames,
            "adaptation_episodes": self.adaptation_episodes,
            "evaluation_episodes": 1,
            "horizon": self._config.env.horizon,
            "tasks": names,
            **{key: outcomes[key].tolist() for key in ("task", "goal", "success", "return")},
        }
        (folder / f"{split}_{frames:012d}.json").write_text(json.dumps(report))

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs.values():
            env.close()
