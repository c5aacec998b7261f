"""Builds the parts of training from a recipe's configuration."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

from htrmrl_torchrl import (
    EpisodicReplayBuffer,
    EpisodicStorage,
    NormalizedClipPPOLoss,
    TaskRewardNormalizer,
    TrialGAE,
    keys,
)
from htrmrl_torchrl.agent.collector import TrialCollector
from htrmrl_torchrl.agent.networks import Networks
from htrmrl_torchrl.envs.shares import LaneShare
from htrmrl_torchrl.runs.progress import Progress
from htrmrl_torchrl.specs import check_action
from recipes.configuration.environment import names_of_tasks
from recipes.configuration.relations import batches_per_update, frames_of_context, frames_per_batch
from recipes.configuration.run_folder import plain


def make_repeatable(device: str) -> None:
    """Makes runs on a GPU deterministic, as on the CPU; by default a GPU adds in any order.

    Call it before the first tensor is on the device.
    """
    if torch.device(device).type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def agent_arguments(config: DictConfig, env: EnvBase) -> dict[str, Any]:
    """All arguments of `build_networks`, as plain numbers and strings.

    Raises:
        MismatchError: if the environment's actions are discrete.
    """
    check_action(env.action_spec_unbatched)
    action = env.action_spec_unbatched.space
    return {
        "observation_dim": env.observation_spec[keys.OBSERVATION].shape[-1],
        "action_low": action.low.tolist(),
        "action_high": action.high.tolist(),
        **network_settings(config),
    }


def network_settings(config: DictConfig) -> dict[str, Any]:
    """The arguments of `build_networks` that do not depend on the environment."""
    encoder = plain(config.encoder)
    return {
        "encoder_kind": encoder.pop("kind"),
        **encoder,
        "reward_scale": config.env.reward_scale,
        **plain(config.memory),
        **plain(config.policy),
        "critic_kind": config.critic.kind,
        "value_norm": config.loss.value_norm,
        "seed": config.seed,
    }


def ppo_loss(config: DictConfig, networks: Networks) -> NormalizedClipPPOLoss:
    """PPO's loss; moves the networks to the device."""
    return NormalizedClipPPOLoss(
        networks.actor,
        networks.critic,
        clip_epsilon=config.loss.clip_epsilon,
        entropy_coeff=config.loss.entropy_coeff,
        critic_coeff=config.loss.critic_coeff,
        loss_critic_type="l2",
    ).to(config.device)


def learning_rate(config: DictConfig, *, frames: int, share: float) -> float:
    """Adam's learning rate for the batch that begins at ``frames``: the scheduled rate times ``share``."""
    left = 1 - frames / config.total_frames if config.optim.schedule == "linear" else 1.0
    return float(config.optim.lr * left * share)


def next_share(config: DictConfig, share: float, *, kl: float) -> float:
    """The share of the scheduled rate after an update with this mean KL, which keeps KL near ``optim.target_kl``."""
    if config.optim.target_kl is None:
        return share
    return min(share * 1.1, 1.0) if kl < config.optim.target_kl else share / 1.1


def reward_normalizer(config: DictConfig) -> TaskRewardNormalizer:
    """Scales the rewards of all tasks to one size; adapts only with ``loss.reward_norm``."""
    tasks = names_of_tasks(config, "train")
    return TaskRewardNormalizer(num_tasks=len(tasks), gamma=config.loss.gamma).to(config.device)


def advantages(config: DictConfig) -> TrialGAE:
    """Computes advantages and value targets of a batch."""
    return TrialGAE(
        gamma=config.loss.gamma,
        lmbda=config.loss.gae_lambda,
        credit=config.loss.credit,
        bootstrap=config.loss.bootstrap,
        advantage_norm=config.loss.advantage_norm,
    )


def replay_buffer(config: DictConfig, networks: Networks) -> EpisodicReplayBuffer:
    """Holds the frames of an update, and the frames of earlier batches in its contexts."""
    return EpisodicReplayBuffer(
        storage=EpisodicStorage(
            config.collector.grow_to * frames_per_batch(config) + frames_of_context(config),
            window=networks.encoder.window,
            episodes=networks.encoder.episodes,
            scope=config.memory.scope,
            max_episodes=config.memory.max_episodes,
        ),
        batch_size=config.loss.minibatch_frames,
        segment_frames=config.loss.segment_frames,
    )


def collector_of(config: DictConfig, env: EnvBase, networks: Networks, share: LaneShare | None = None) -> Collector:
    """A collector without a frame limit, with the faster rollout where possible; ``share``: environments of `env`."""
    lanes = config.env.num_envs if share is None else share.count
    return TrialCollector(
        env,
        networks.policy,
        frames_per_batch=frames_per_batch(config) // config.env.num_envs * lanes,
        total_frames=-1,
        policy_device=config.device,
        env_device="cpu",
        storing_device=config.device,
        auto_register_policy_transforms=False,
        share=share,
    )


def merged_batches(
    batches: Iterable[TensorDictBase], config: DictConfig, progress: Progress
) -> Iterator[TensorDictBase]:
    """Concatenates successive batches ``[N, T]`` to ``[N, m * T]``, as large as the next update needs.

    All are whole trials of the same policy, as if more environments had played at once.
    """
    parts = []
    for batch in batches:
        parts.append(batch)
        if len(parts) >= batches_per_update(config, frames=progress.frames):
            yield torch.cat(parts, 1) if len(parts) > 1 else batch
            parts = []
