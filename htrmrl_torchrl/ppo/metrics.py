"""What a collected batch says about learning: success and return by task and by episode, and what memory held."""

import os
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from htrmrl_torchrl import keys


def episode_outcomes(batch: TensorDictBase) -> TensorDict:
    """One row for each episode that both begins and ends in a batch ``[N, T]`` or ``[T]``.

    Returns:
        ``success`` (did any step succeed; absent where the environment does not say), ``return`` (undiscounted),
        ``episode`` (order in the trial) and ``task``, all ``[episodes]``.
    """
    batch = batch if batch.ndim == 2 else batch.unsqueeze(0)
    begins = batch[keys.IS_INIT].squeeze(-1).clone()
    begins[:, 0] = True
    index = begins.flatten().cumsum(0) - 1  # [N * T] episode of each step
    first = begins.flatten().nonzero().squeeze(-1)
    zeros = torch.zeros(len(first), device=first.device)
    done = zeros.index_add(0, index, batch["next", keys.DONE].flatten().float())
    out = TensorDict(
        {
            "return": zeros.index_add(0, index, batch["next", keys.REWARD].flatten().float()),
            "episode": batch[keys.EPISODE].flatten()[first],
            "task": batch.get(keys.TASK, torch.zeros_like(batch[keys.EPISODE])).flatten()[first],
        },
        batch_size=[len(first)],
    )
    if ("next", keys.SUCCESS) in batch.keys(True):
        out["success"] = zeros.index_add(0, index, batch["next", keys.SUCCESS].flatten().float()).clamp(max=1)
    whole = (done > 0) & batch[keys.IS_INIT].flatten()[first]
    return out[whole]


def training_metrics(batch: TensorDictBase, task_names: list[str]) -> dict[str, float]:
    """``train/*`` and ``memory/*`` of a collected batch ``[N, T]``; tasks are named by `task_names`, or by number."""
    outcomes = episode_outcomes(batch)
    if not len(outcomes):  # episodes longer than the batch
        return memory_metrics(batch)
    metrics = {}
    for name in ("return", "success"):
        if name not in outcomes.keys():  # an environment need not say what success is
            continue
        values = outcomes[name]
        metrics[f"train/{name}"] = values.mean().item()
        for order in outcomes["episode"].unique().tolist():
            metrics[f"train/{name}_by_episode/{order}"] = values[outcomes["episode"] == order].mean().item()
        for task in outcomes["task"].unique().tolist():
            metrics[f"train/{name}/{_name(task, task_names)}"] = values[outcomes["task"] == task].mean().item()
    return metrics | memory_metrics(batch)


def memory_metrics(batch: TensorDictBase) -> dict[str, float]:
    """Share of slots that hold a window, and how many episodes ago the windows were lived."""
    drawn = batch[keys.WINDOW_EPISODE]  # [N, T, E-1]
    held = drawn >= 0
    if not drawn.shape[-1]:
        return {}
    metrics = {"memory/occupancy": held.float().mean().item()}
    if held.any():
        age = (batch[keys.WINDOW_CURRENT] - drawn)[held]
        metrics["memory/window_age"] = age.float().mean().item()
    return metrics


def explained_variance(value: Tensor, target: Tensor) -> float:
    """1 - Var(target - value) / Var(target): 1 is a perfect critic, 0 one that only knows the mean."""
    return (1 - (target - value).var() / target.var().clamp_min(1e-12)).item()


def critic_metrics(batch: TensorDictBase, value_target: Tensor, task_names: list[str]) -> dict[str, float]:
    """``ppo/explained_variance`` of ``value_target`` ``[N, T, 1]`` by the values recorded in a batch, and by task."""
    value = batch[keys.STATE_VALUE]
    task = batch.get(keys.TASK, torch.zeros_like(batch[keys.EPISODE]))
    name = "ppo/explained_variance"
    metrics = {name: explained_variance(value, value_target)}
    for index in task.unique().tolist():
        ours = task == index
        metrics[f"{name}/{_name(index, task_names)}"] = explained_variance(value[ours], value_target[ours])
    return metrics


def _name(task: int, names: list[str]) -> str:
    """An environment of one's own may have more tasks than names are known of."""
    return names[task] if task < len(names) else f"task-{task}"


def process_metrics() -> dict[str, float]:
    """``process/*``: resident memory of this process in MiB and its open files, to see leaks; empty without ``/proc``.

    Environment workers are processes of their own and not counted.
    """
    proc = Path("/proc/self")
    if not (proc / "statm").exists():
        return {}
    pages = int((proc / "statm").read_text().split()[1])
    return {
        "process/resident_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "process/open_files": len(os.listdir(proc / "fd")) - 1.0,  # listing them opens one more
    }
