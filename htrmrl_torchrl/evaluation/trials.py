"""Success on a fixed grid of (task, goal) pairs: every pair is played once, by one lane, and counted once.

The protocol is ``strict``: K adaptation episodes with sampled actions, then M episodes with the mean action, all in one
trial whose memory persists. Success never ends an episode.
"""

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from htrmrl_torchrl import keys
from htrmrl_torchrl.modules.memory import EpisodicMemory


def goal_grid(*, num_tasks: int, goals_per_task: int) -> list[tuple[int, int]]:
    """The first goals of each task: ``[(task, goal), ...]``, one lane each.

    Example:
        >>> goal_grid(num_tasks=2, goals_per_task=2)
        [(0, 0), (0, 1), (1, 0), (1, 1)]
    """
    return [(task, goal) for task in range(num_tasks) for goal in range(goals_per_task)]


def play_trials(
    policy: TensorDictModuleBase,
    env: EnvBase,
    *,
    adaptation_episodes: int,
    evaluation_episodes: int = 1,
    seed: int = 0,
) -> TensorDict:
    """Plays one trial on every lane and reports each of its episodes.

    Args:
        policy: begins with a memory of its own and writes ``action`` and the mean action ``"_loc"``, see
            `htrmrl_torchrl.networks.acting_policy`. The memory is restarted: equal calls draw equal windows.
        env: a trial environment ``[N]`` of at least K + M episodes a trial; reset here.
        adaptation_episodes: K, with sampled actions.
        evaluation_episodes: M, with the mean action.
        seed: of the action noise; torch's own random state is left as it was.

    Returns:
        ``success`` (bool) and ``return`` ``[N, K + M]``, ``task`` and ``goal`` ``[N]``.

    Raises:
        ValueError: if the environment's trials are shorter than K + M episodes.
    """
    lanes, total = env.batch_size[0], adaptation_episodes + evaluation_episodes
    per_trial = getattr(env, "episodes_per_trial", total)
    if per_trial < total:
        raise ValueError(
            f"The environment's trials have {per_trial} episodes; {adaptation_episodes} + {evaluation_episodes} = "
            f"{total} are to be played. Build it with episodes_per_trial={total}."
        )
    for module in policy.modules():
        if isinstance(module, EpisodicMemory):
            module.restart()
    success = torch.zeros(lanes, total, dtype=torch.bool)
    returns = torch.zeros(lanes, total)
    ended = torch.zeros(lanes, total, dtype=torch.bool)
    with torch.random.fork_rng(), torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        torch.manual_seed(seed)
        now = env.reset()
        start = TensorDict(task=now[keys.TASK].squeeze(-1), goal=now[keys.GOAL].squeeze(-1), batch_size=[lanes])
        while not ended.all():
            order = now[keys.EPISODE].clamp(max=total - 1)  # [N, 1]
            counts = ~ended.gather(1, order)
            now = policy(now)
            now[keys.ACTION] = torch.where(order >= adaptation_episodes, now[keys.LOC], now[keys.ACTION])
            stepped, now = env.step_and_maybe_reset(now)
            after = stepped["next"]
            success.scatter_(1, order, success.gather(1, order) | (after[keys.SUCCESS] & counts))
            returns.scatter_add_(1, order, after[keys.REWARD] * counts)
            ended.scatter_(1, order, ended.gather(1, order) | after[keys.DONE])
    return start.update({"success": success, "return": returns}).auto_batch_size_(1)


def success_metrics(
    outcomes: TensorDictBase, task_names: Sequence[str], *, split: str, evaluation_episodes: int = 1
) -> dict[str, float]:
    """``eval/<split>_*`` of `play_trials`: mean over evaluation episodes, then goals, then tasks with equal weight."""
    success = outcomes["success"].float()  # [N, K + M]
    by_task = {name: outcomes["task"] == index for index, name in enumerate(task_names)}
    by_task = {name: lanes for name, lanes in by_task.items() if lanes.any()}
    final = success[:, -evaluation_episodes:]
    metrics = {f"eval/{split}_success/{name}": final[lanes].mean().item() for name, lanes in by_task.items()}
    metrics[f"eval/{split}_success"] = sum(metrics.values()) / len(metrics)
    curve = torch.stack([success[lanes].mean(0) for lanes in by_task.values()]).mean(0)
    returns = torch.stack([outcomes["return"][lanes].mean(0) for lanes in by_task.values()]).mean(0)
    metrics[f"eval/{split}_return"] = returns[-evaluation_episodes:].mean().item()
    return metrics | {f"eval/{split}_success_by_episode/{k}": value for k, value in enumerate(curve.tolist())}
