"""One PPO update (Schulman et al. 2017)."""

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential
from torch import Tensor
from torch.optim import Optimizer

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.heads import keep_std_at_floor, value_head
from htrmrl_torchrl.agent.networks import Networks
from htrmrl_torchrl.faults import check_finite
from htrmrl_torchrl.parallel.ranks import Ranks
from htrmrl_torchrl.ppo.checks import check_targets, clip_gradients
from htrmrl_torchrl.ppo.gradients import differentiate, differentiate_share
from htrmrl_torchrl.ppo.objectives import NormalizedClipPPOLoss, TrialGAE, final_values
from htrmrl_torchrl.ppo.reward_norm import TaskRewardNormalizer
from htrmrl_torchrl.replay.buffer import EpisodicReplayBuffer


@dataclass(frozen=True, kw_only=True)
class Learner:
    """The inputs and parts of an update.

    Args:
        networks: trained; their token and value normalisers adapt once per update.
        loss, optimizer: of these networks.
        advantages: computes advantages and value targets of a batch.
        buffer: holds the batch; an epoch is one pass over it.
        rewards: scales rewards by task before advantages are computed; ``None``: unscaled.
        epochs: maximal number of passes over the batch.
        target_kl: stop after a pass whose mean KL to the acting policy exceeds it; ``None``: all passes.
        max_grad_norm: gradients are clipped to this norm.
        normalize_observations: whether the token normaliser adapts to the batch after the last pass.
        ranks: the processes that hold the same batch and learn a share of each minibatch.
    """

    networks: Networks
    loss: NormalizedClipPPOLoss
    optimizer: Optimizer
    advantages: TrialGAE
    buffer: EpisodicReplayBuffer
    rewards: TaskRewardNormalizer | None
    epochs: int
    target_kl: float | None
    max_grad_norm: float
    normalize_observations: bool
    ranks: Ranks = field(default_factory=Ranks)


@dataclass(frozen=True)
class Updated:
    """Result of an update: value targets ``[N, T]``, the last minibatch, and ``loss/*`` and ``ppo/*``."""

    targets: TensorDictBase
    minibatch: TensorDictBase
    metrics: dict[str, float]


def update(learner: Learner, batch: TensorDictBase, frames: Tensor, *, learning_rate: float) -> Updated:
    """Trains on one batch ``[N, T]``, with ``learning_rate``.

    ``frames`` ``[N, T]`` are its rows in the buffer, as `EpisodicReplayBuffer.extend` returned them. Raises
    NonFiniteError as soon as a target, loss or gradient is not finite; the caller must then undo the whole update.
    """
    # 1. Advantages and value targets, from the values that the policy wrote in the rollout.
    targets = _targets(learner, batch, frames)
    learner.buffer.assign(frames, targets)
    value_head(learner.networks.critic).adapt(targets[keys.VALUE_TARGET])

    # 2. Several epochs over minibatches that mix all tasks.
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate
    sums: dict[str, float] = defaultdict(float)
    first_ratio, steps, passes = None, 0, 0
    for _ in range(learner.epochs):
        kl_before, steps_before = sums["ppo/kl"], steps
        for minibatch in learner.buffer:
            losses, norm = _step(learner, minibatch)
            first_ratio = losses["mean_ratio"].item() if first_ratio is None else first_ratio
            steps += 1
            for name, value in _loss_metrics(losses, norm).items():
                sums[name] += value
        passes += 1
        kl = (sums["ppo/kl"] - kl_before) / (steps - steps_before)
        if learner.target_kl is not None and kl > learner.target_kl:
            break

    # 3. The statistics that normalise observations change only after the last pass.
    if learner.normalize_observations:
        learner.networks.encoder.tokens.adapt(batch[keys.OBSERVATION])
    assert first_ratio is not None
    metrics = {name: value / steps for name, value in sums.items()}
    metrics |= {"ppo/first_minibatch_ratio": first_ratio, "ppo/epochs": passes, "ppo/learning_rate": learning_rate}
    return Updated(targets, minibatch, metrics)


def _targets(learner: Learner, batch: TensorDictBase, frames: Tensor) -> TensorDictBase:
    check_finite([("square of reward", batch["next", keys.REWARD].square())])
    scaled, ends = batch, None
    if learner.rewards is not None:
        learner.rewards.adapt(batch)
    if learner.advantages.bootstrap or not batch["next", keys.DONE][:, -1].all():
        networks = learner.networks
        ends = final_values(learner.buffer, frames, TensorDictSequential(networks.encoder, networks.critic))
    if learner.rewards is not None:
        scaled = learner.rewards(batch)
    targets = learner.advantages(scaled, final_values=ends)
    check_targets(targets)
    return targets


def _step(learner: Learner, minibatch: TensorDictBase) -> tuple[TensorDictBase, Tensor]:
    """One optimizer step; returns the loss terms and the gradient norm before clipping."""
    learner.optimizer.zero_grad(set_to_none=True)
    if learner.ranks.size == 1:
        losses = differentiate(learner.loss, minibatch)
    else:
        losses = differentiate_share(learner.loss, minibatch, learner.ranks)
    norm = clip_gradients(learner.loss, learner.max_grad_norm)
    learner.optimizer.step()
    keep_std_at_floor(learner.networks.actor)
    return losses, norm


@torch.no_grad()
def _loss_metrics(losses: TensorDictBase, norm: Tensor) -> dict[str, float]:
    return {
        "loss/objective": losses["loss_objective"].item(),
        "loss/critic": losses["loss_critic"].item(),
        "loss/entropy": losses["loss_entropy"].item(),
        "loss/gradient_norm": norm.item(),
        "ppo/kl": losses["kl_approx"].item(),
        "ppo/clip_fraction": losses["clip_fraction"].item(),
        "ppo/entropy": losses["entropy"].item(),
    }
