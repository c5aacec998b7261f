"""Additions to TorchRL's PPO: advantages over trials, and a value loss in normalised units."""

from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.heads import value_head
from htrmrl_torchrl.envs.lanes import check_choice
from htrmrl_torchrl.replay.buffer import EpisodicReplayBuffer
from htrmrl_torchrl.specs import MismatchError

Credit = Literal["episode", "trial"]
AdvantageNorm = Literal["batch", "task", "none"]


class TrialGAE:
    """Generalised advantage estimation over the episodes of trials (Schulman et al. 2016), without a second encoding.

    It reads the rollout's ``state_value``. The value after an episode's last step depends on `credit`::

        step            ...  s_H-1 |  s_0  ...         two episodes of one trial
        credit=episode  ...  0     |  V(s_1) ...       each episode is its own path
        credit=trial    ...  V(s_0 of the next one)    the trial is one path, with value 0 after its end

    Args:
        gamma, lmbda: discount and trace decay per step.
        credit: ``"episode"``, or ``"trial"``, which rewards exploration for returns in later episodes.
        bootstrap: use the value of the final context instead of 0 at a path's end, unless the episode was terminated.
        advantage_norm: ``"task"``: standardised within each task, so that tasks with large rewards do not dominate;
            ``"batch"``: over the batch; ``"none"``. The advantage of a single frame is 0 when standardised.

    Raises ValueError for unknown modes and missing final values, MismatchError (a ValueError) for a batch that is not
    ``[N, T]`` or lacks entries.
    """

    def __init__(
        self,
        *,
        gamma: float = 0.99,
        lmbda: float = 0.95,
        credit: Credit = "episode",
        bootstrap: bool = False,
        advantage_norm: AdvantageNorm = "task",
    ) -> None:
        check_choice(Credit, credit=credit)
        check_choice(AdvantageNorm, advantage_norm=advantage_norm)
        self.credit, self.bootstrap = credit, bootstrap
        self._gae = GAE(
            gamma=gamma,
            lmbda=lmbda,
            value_network=None,
            average_gae=advantage_norm != "none",
            group_key=keys.TASK if advantage_norm == "task" else None,
        )

    def __call__(self, batch: TensorDictBase, *, final_values: Tensor | None = None) -> TensorDict:
        """``advantage`` and ``value_target`` ``[N, T, 1]`` of a batch ``[N, T]`` (one row per environment) or ``[T]``.

        Args:
            batch: as collected; a row may hold several trials. An episode that ends with the row counts as a trial's
                end, so with ``credit="trial"`` batches should end with trials.
            final_values: V after each step that ends an episode or the batch, ``[N, T, 1]``, from `final_values`; other
                steps are not read. Needed with `bootstrap`, and if the batch cuts an episode.
        """
        if batch.ndim == 1:  # an environment without batch axis
            lane_values = None if final_values is None else final_values.unsqueeze(0)
            return self(batch.unsqueeze(0), final_values=lane_values).squeeze(0)
        self._check(batch)
        value, after = batch[keys.STATE_VALUE], batch["next"]
        done = after[keys.DONE]
        never = torch.zeros_like(done[:, :1])
        path_end = done if self.credit == "episode" else torch.cat([batch[keys.TRIAL_INIT][:, 1:], never], 1)
        path_end = torch.cat([path_end[:, :-1], ~never], 1)
        worth_zero = path_end & (after[keys.TERMINATED] | (done if not self.bootstrap else never))
        successor = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1)
        if final_values is not None:
            successor = torch.where(path_end, final_values, successor)
        elif bool((path_end & ~worth_zero).any()):
            raise ValueError(
                "What follows the end of a path has a value (bootstrap=True, or the batch cuts an episode), but "
                "final_values was not given. Pass final_values(...), or collect whole trials without bootstrap."
            )
        paths = TensorDict(
            {
                keys.STATE_VALUE: value,
                keys.TASK: batch.get(keys.TASK, torch.zeros_like(done, dtype=torch.long)),
                "next": {
                    keys.STATE_VALUE: successor,
                    keys.REWARD: after[keys.REWARD].to(value.dtype),
                    keys.DONE: path_end,
                    keys.TERMINATED: worth_zero,
                },
            },
            batch_size=batch.batch_size,
        )
        with torch.no_grad():
            targets = self._gae(paths).select(keys.ADVANTAGE, keys.VALUE_TARGET)
        if self._gae.average_gae and batch.numel() == 1:  # the standard deviation of one number is NaN
            targets[keys.ADVANTAGE].zero_()
        return targets

    def _check(self, batch: TensorDictBase) -> None:
        if batch.ndim != 2:
            raise MismatchError(
                f"A batch must be [N, T], one row per environment, or [T]; received {list(batch.batch_size)}; use "
                f"batch.flatten(0, {batch.ndim - 2})."
            )
        read: list[NestedKey] = [keys.STATE_VALUE, *([keys.TRIAL_INIT] if self.credit == "trial" else [])]
        read += [("next", key) for key in (keys.REWARD, keys.DONE, keys.TERMINATED)]
        missing = [key for key in read if key not in batch.keys(True, True)]
        if missing:
            raise MismatchError(
                f"The batch lacks {missing}; collect it with the policy of make_actor_critic in an environment with a "
                "TrialTransform."
            )
        value, reward = batch[keys.STATE_VALUE], batch["next", keys.REWARD]
        if value.shape != reward.shape:
            raise MismatchError(
                f"Rewards have shape {list(reward.shape)} and values {list(value.shape)}, but must be alike, one "
                "number a frame; give the environment one reward."
            )


@torch.no_grad()
def final_values(buffer: EpisodicReplayBuffer, frames: Tensor, value: TensorDictModuleBase) -> Tensor:
    """V after the last step of each episode in the buffer: ``[N, T, 1]``, zero at other steps.

    ``frames`` ``[N, T]`` are the batch's rows from ``buffer.extend``. ``value`` maps ``"context"`` to
    ``"state_value"``; for a shared critic it is ``TensorDictSequential(encoder, critic)``.
    """
    contexts, last = buffer.storage.final_contexts()
    ends = value(TensorDict({keys.CONTEXT: contexts}, batch_size=contexts.batch_size))[keys.STATE_VALUE]
    return ends.new_zeros(len(buffer), 1).index_copy(0, last, ends)[frames]


class NormalizedClipPPOLoss(ClipPPOLoss):
    """`ClipPPOLoss` that divides value errors by a `ValueHead`'s frozen scale (1 without value normalisation).

    Predictions and targets stay in units of the return. ``kwargs`` are those of `ClipPPOLoss`.
    """

    def __init__(self, actor: TensorDictModuleBase, critic: TensorDictModuleBase, **kwargs: Any) -> None:
        super().__init__(actor, critic, functional=False, **kwargs)

    def _critic_loss_inputs(
        self, target_return: Tensor, state_value: Tensor, old_state_value: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        scale = value_head(self.critic_network).scale
        old = None if old_state_value is None else old_state_value / scale
        return target_return / scale, state_value / scale, old
