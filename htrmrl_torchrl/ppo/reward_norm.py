"""Rewards of all tasks in one unit, so that one critic can tell good from bad in each of them."""

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.objectives.value.functional import reward2go

from htrmrl_torchrl import keys

MEMORY = 0.9  # of the running mean, a batch: about ten of them count

SMALLEST = 1e-3  # returns below are left small, or rewards that are next to nothing would be blown up


class TaskRewardNormalizer(nn.Module):
    """Divides rewards by the size of their task's returns: the root mean square of discounted returns, per task.

    Untrained agents earn a hundred times more in Meta-World's ``drawer-close`` than in its ``pick-place``. The error of
    a critic that predicts both is as large as all returns of the latter, and advantage normalisation amplifies it.

    The mean is an exponential average over the batches that hold the task. Before the first of them a task's rewards
    stay as they are. Metrics and tokens keep the rewards of the environment.

    Args:
        num_tasks: how many tasks there are; ``task`` counts them from 0.
        gamma: discount a step.

    Raises:
        ValueError: for no tasks, or a discount outside (0, 1].

    Example:
        >>> from tensordict import TensorDict
        >>> step = {"reward": torch.tensor([[[6.0]], [[8.0]]]), "done": torch.ones(2, 1, 1, dtype=torch.bool)}
        >>> batch = TensorDict({"task": torch.zeros(2, 1, 1, dtype=torch.int64), "next": step}, [2, 1])
        >>> normalizer = TaskRewardNormalizer(num_tasks=1, gamma=0.99)
        >>> normalizer.adapt(batch)
        >>> round(normalizer.scale.item() ** 2, 6)  # (36 + 64) / 2
        50.0
    """

    square: Tensor
    weight: Tensor

    def __init__(self, *, num_tasks: int, gamma: float) -> None:
        super().__init__()
        if num_tasks < 1:
            raise ValueError(f"num_tasks={num_tasks} must be at least 1.")
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma={gamma} must be greater than 0 and at most 1.")
        self.gamma = gamma
        self.register_buffer("square", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(num_tasks, dtype=torch.float64))

    @property
    def scale(self) -> Tensor:
        """What the rewards of each task are divided by, ``[num_tasks]``."""
        size = (self.square / self.weight).sqrt().clamp_min(SMALLEST)
        return torch.where(self.weight > 0, size, 1)

    def forward(self, batch: TensorDictBase) -> TensorDictBase:
        """The batch ``[N, T]`` or ``[T]`` with scaled rewards; all else is shared with the one given, which stays."""
        reward = batch["next", keys.REWARD]
        scaled = batch.clone(recurse=False)
        scaled["next"] = batch["next"].clone(recurse=False)
        scaled["next", keys.REWARD] = reward / self.scale.to(reward)[_task(batch)]
        return scaled

    @torch.no_grad()
    def adapt(self, batch: TensorDictBase) -> None:
        """Takes the discounted returns of a batch into the scale, each up to its episode's or row's end."""
        ends = batch["next", keys.DONE].clone()
        ends[..., -1, :] = True
        returns = reward2go(batch["next", keys.REWARD], ends, self.gamma)
        task = _task(batch).flatten()
        count = torch.zeros_like(self.weight).index_add(0, task, torch.ones_like(task, dtype=torch.float64))
        total = torch.zeros_like(self.square).index_add(0, task, returns.flatten().double().square())
        present = count > 0
        self.square.copy_(torch.where(present, torch.lerp(total / count, self.square, MEMORY), self.square))
        self.weight.copy_(torch.where(present, torch.lerp(torch.ones_like(count), self.weight, MEMORY), self.weight))


def _task(batch: TensorDictBase) -> Tensor:
    """``[*batch, 1]``; an environment that names no tasks has one."""
    return batch.get(keys.TASK, torch.zeros_like(batch["next", keys.DONE], dtype=torch.int64))
