"""Where success is lost: how far the episodes of each task come, by what Meta-World says of every step."""

from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tensordict.nn import TensorDictModuleBase

from htrmrl_torchrl.envs import task_names
from htrmrl_torchrl.envs.benchmarks import find_benchmark
from htrmrl_torchrl.envs.deck import FixedGrid
from htrmrl_torchrl.envs.factory import resolve_horizon
from htrmrl_torchrl.envs.lanes import BoolArray, FloatArray, IntArray, Picture
from htrmrl_torchrl.envs.metaworld import MetaWorldLanes
from htrmrl_torchrl.envs.trial import TrialEnv
from htrmrl_torchrl.evaluation.protocols import Protocol
from htrmrl_torchrl.evaluation.trials import goal_grid, play_trials

STAGES = ("near", "grasped", "in place", "success")


@dataclass(frozen=True, eq=False, kw_only=True)
class StageReport:
    """How far each of N trials of K adaptation and M evaluation episodes came.

    Args:
        tasks: names.
        task: ``[N]``, indices into them.
        reached: ``[N, K + M, 4]``, by `STAGES`. ``near`` and ``grasped``: whether Meta-World's ``near_object`` and
            ``grasp_success`` were 1 in any step. ``in place``: the best ``in_place_reward``, 0 to 1. ``success``: in
            any step. Meta-World defines them task by task: where nothing is to be grasped ``grasped`` is always 1,
            and in ``reach`` and ``door-close`` nothing ever counts as near.
        evaluation_episodes: M, the last ones.
    """

    tasks: list[str]
    task: IntArray
    reached: npt.NDArray[np.float64]
    evaluation_episodes: int

    def by_task(self) -> dict[str, dict[str, float]]:
        """Means over each task's goals and evaluation episodes, by name of the task and of the stage."""
        counted = self.reached[:, -self.evaluation_episodes :].mean(1)  # [N, 4]
        means = {name: counted[self.task == index].mean(0).tolist() for index, name in enumerate(self.tasks)}
        return {name: dict(zip(STAGES, values, strict=True)) for name, values in means.items()}

    def __str__(self) -> str:
        width = max(map(len, self.tasks))
        lines = [f"{'task':<{width}}  " + "  ".join(f"{stage:>8}" for stage in STAGES)]
        for name, stages in self.by_task().items():
            lines.append(f"{name:<{width}}  " + "  ".join(f"{value:8.2f}" for value in stages.values()))
        return "\n".join(lines)


def play_stages(
    policy: TensorDictModuleBase,
    benchmark: str,
    protocol: Protocol,
    *,
    split: str = "test",
    horizon: int | None = None,
    benchmark_seed: int = 0,
    seed: int = 0,
    num_envs: int = 20,
    progress: bool = False,
) -> StageReport:
    """Plays a grid of goals as `evaluate` does, in this process, and reports how far each episode came.

    Args:
        policy: see `play_trials`.
        benchmark: ``ML1:<task>``, ``ML10``, ``ML25``, ``ML45`` or ``custom:[...]/[...]``.
        protocol: which goals are played, and how.
        split, horizon, benchmark_seed, seed, num_envs, progress: as in `htrmrl_torchrl.evaluate`.

    Raises:
        ValueError: for names that are no Meta-World benchmark.

    Example:
        >>> import torch
        >>> from tensordict.nn import TensorDictModule
        >>> from htrmrl_torchrl.evaluation import PROTOCOLS
        >>> idle = TensorDictModule(lambda o: torch.zeros(len(o), 4), in_keys=["observation"], out_keys=["action"])
        >>> protocol = PROTOCOLS["strict"].changed(goals_per_task=1, adaptation_episodes=0)
        >>> print(play_stages(idle, "ML1:push-v3", protocol, horizon=5))
        task         near   grasped  in place   success
        push-v3      0.00      0.00      0.18      0.00
    """
    horizon = resolve_horizon(benchmark, horizon)
    names = task_names(benchmark, split)
    pairs = goal_grid(num_tasks=len(names), goals_per_task=protocol.goals_per_task)
    num_envs = min(num_envs, len(pairs))
    inner = find_benchmark(benchmark).lanes(split, horizon, benchmark_seed).builder(num_envs)
    if not isinstance(inner, MetaWorldLanes):
        raise ValueError(f"{benchmark} is not of Meta-World, whose simulators say how far an episode came.")
    lanes = _Watched(inner)
    deck = FixedGrid(pairs, num_lanes=num_envs)
    with closing(TrialEnv(lanes, deck, episodes_per_trial=protocol.episodes, horizon=horizon)) as env:
        outcome = play_trials(policy, env, protocol, trials=len(pairs), seed=seed, progress=progress)
    rounds = np.stack(lanes.episodes).reshape(-1, protocol.episodes, num_envs, 3)
    reached = rounds.swapaxes(1, 2).reshape(-1, protocol.episodes, 3)[: len(pairs)]
    success = outcome["success"].numpy()[..., None]
    return StageReport(
        tasks=names,
        task=outcome["task"].numpy(),
        reached=np.concatenate([reached, success], -1),
        evaluation_episodes=protocol.evaluation_episodes,
    )


class _Watched:
    """Meta-World's lanes, and how far each episode came; all lanes begin their episodes together."""

    def __init__(self, lanes: MetaWorldLanes) -> None:
        self._lanes = lanes
        self.num_lanes, self.obs_dim = lanes.num_lanes, lanes.obs_dim
        self.action_low, self.action_high = lanes.action_low, lanes.action_high
        self.episodes: list[npt.NDArray[np.float64]] = []  # [N, 3] each

    @property
    def divergences(self) -> int:
        return self._lanes.divergences

    def reset(self, lanes: IntArray, tasks: IntArray, goals: IntArray, draws: IntArray | None = None) -> FloatArray:
        self.episodes.append(np.zeros((self.num_lanes, 3)))
        return self._lanes.reset(lanes, tasks, goals, draws)

    def step(self, actions: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
        stepped = self._lanes.step(actions)
        now = [
            (info["near_object"] >= 1, info["grasp_success"] >= 1, info["in_place_reward"])
            for info in self._lanes.infos
        ]
        np.maximum(self.episodes[-1], now, out=self.episodes[-1])
        return stepped

    def render(self, lane: int, *, size: int) -> Picture:
        return self._lanes.render(lane, size=size)

    def close(self) -> None:
        self._lanes.close()
