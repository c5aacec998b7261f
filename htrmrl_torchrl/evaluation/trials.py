"""Plays a fixed grid of (task, goal) pairs: each pair in one trial of one environment, counted once.

A trial has K adaptation episodes and then M evaluation episodes, with one memory. Success at any step makes an episode
a success but does not end it. So all environments are always at the same step of the same episode.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.acting import Acting
from htrmrl_torchrl.agent.noise import Noise, noise_of, sampling_of
from htrmrl_torchrl.envs.shares import LaneShare
from htrmrl_torchrl.envs.trial import TrialEnv
from htrmrl_torchrl.evaluation.exact import ExactPolicy, on_grid
from htrmrl_torchrl.evaluation.protocols import Protocol
from htrmrl_torchrl.memory.contract import Memory, memories_of
from htrmrl_torchrl.memory.windows import token_after
from htrmrl_torchrl.progress import NoBar, progress_bar

if TYPE_CHECKING:
    from tqdm import tqdm

# Keys of an episode's first step that describe the previous episode.
_BOUNDARY = (keys.TRIAL_INIT, keys.FINAL_OBSERVATION, keys.FINAL_ACTION, keys.FINAL_REWARD)


def goal_grid(*, num_tasks: int, goals_per_task: int) -> list[tuple[int, int]]:
    """The first goals of each task: ``[(task, goal), ...]``.

    Example:
        >>> goal_grid(num_tasks=2, goals_per_task=2)
        [(0, 0), (0, 1), (1, 0), (1, 1)]
    """
    return [(task, goal) for task in range(num_tasks) for goal in range(goals_per_task)]


def play_trials(
    policy: TensorDictModuleBase,
    env: TrialEnv,
    protocol: Protocol,
    *,
    trials: int | None = None,
    seed: int = 0,
    progress: bool = False,
    on_step: Callable[[int, TensorDictBase], None] | None = None,
    share: LaneShare | None = None,
) -> TensorDict:
    """Plays trials and reports each of their episodes.

    Args:
        policy: writes ``action``, sampled or (under TorchRL's ``ExplorationType.DETERMINISTIC``) the mean. It needs a
            memory of its own, see `htrmrl_torchrl.agent.acting_policy`, because the memory is restarted.
        env: N environments whose trials have K + M episodes; reset here.
        protocol: the numbers of episodes, the actions of evaluation episodes, and what these remember. (Only a `Memory`
            can be set back between them.)
        trials: number of trials to report, in the order in which `env` deals them; default N. If N does not divide it,
            the rest of the last round is not reported.
        seed: of the action noise; torch's own random state does not change.
        progress: whether progress is shown, see `progress_bar`.
        on_step: called at each episode's start with 0 and the environments' row ``[N]``, and after each step with the
            step's number and its result, before the next episode begins.
        share: if several processes play the trials: the environments of `env`. All their trials are then returned,
            round after round.

    Returns:
        ``[trials]``: ``task`` and ``goal``; and ``[trials, K + M]``: ``success`` (bool), ``return`` (undiscounted) and
        ``steps_to_success`` (counted from 1; 0 without success).

    Raises:
        ValueError: if the environment's trials do not have K + M episodes.
    """
    total = protocol.episodes
    if env.episodes_per_trial != total:
        raise ValueError(
            f"The environment's trials have {env.episodes_per_trial} episodes; {protocol.adaptation_episodes} + "
            f"{protocol.evaluation_episodes} = {total} are needed. Build it with episodes_per_trial={total}."
        )
    trials = env.batch_size[0] if trials is None else trials
    memories = memories_of(policy)
    for memory in memories:
        memory.restart()
    rounds = math.ceil(trials / (env.batch_size[0] if share is None else share.total))
    frames = rounds * total * env.horizon * env.batch_size[0]
    with (
        torch.random.fork_rng(),
        torch.no_grad(),
        progress_bar(total=frames, unit=" frames") if progress else NoBar() as bar,
    ):
        torch.manual_seed(seed)
        kept = memories if protocol.separate else []
        play = partial(_play_round, policy, env, protocol, memories=kept, bar=bar, on_step=on_step, share=share)
        outcomes = torch.cat([play() for _ in range(rounds)])
    return outcomes[:trials] if share is None else outcomes


def _play_round(
    policy: TensorDictModuleBase,
    env: TrialEnv,
    protocol: Protocol,
    *,
    memories: list[Memory],
    bar: "tqdm | NoBar",
    on_step: Callable[[int, TensorDictBase], None] | None,
    share: LaneShare | None,
) -> TensorDict:
    """One trial in every environment, ``[N]``; each evaluation episode sets `memories` back."""
    lanes, total = env.batch_size[0], env.episodes_per_trial
    device = next((parameter.device for parameter in policy.parameters()), env.device)
    steps = torch.zeros(lanes, total, dtype=torch.long)
    returns = torch.zeros(lanes, total)
    acting = _lean_policy(policy, noise_of(share)) if on_step is None else None
    now, boundary = env.reset(), None
    outcome = TensorDict(task=now[keys.TASK].squeeze(-1), goal=now[keys.GOAL].squeeze(-1), batch_size=[lanes])
    for episode in range(total):
        counts = episode >= protocol.adaptation_episodes
        if memories and counts:
            boundary = _start_from(boundary, now, memories)
        mean_action = counts and protocol.evaluation_actions == "mean"
        if on_step is not None:
            on_step(0, now)
        with (
            set_exploration_type(ExplorationType.DETERMINISTIC if mean_action else ExplorationType.RANDOM),
            sampling_of(share, policy),
        ):
            if acting is None:
                played = _plain_steps(policy, env, now, device=device, on_step=on_step)
            else:
                played = _lean_steps(acting, env, now, device=device, mean_action=mean_action)
            for step, (reward, success) in enumerate(played, 1):
                returns[:, episode] += reward.squeeze(-1)
                if success is not None:  # None if the benchmark does not define success
                    steps[:, episode].masked_fill_(success.squeeze(-1) & (steps[:, episode] == 0), step)
                bar.update(lanes)
        # Not after the last episode: the environment would deal the next pairs.
        if episode < total - 1:
            now = env.maybe_reset(env.row())
    return outcome.update({"success": steps > 0, "return": returns, "steps_to_success": steps}).auto_batch_size_(1)


Played: TypeAlias = Iterator[tuple[Tensor, Tensor | None]]  # reward and success [N, 1] of each step of an episode
LeanPolicy: TypeAlias = Callable[[TensorDictBase | None, Tensor | None, bool], Tensor]  # see `Acting.step`


def _plain_steps(
    policy: TensorDictModuleBase,
    env: TrialEnv,
    now: TensorDictBase,
    *,
    device: torch.device,
    on_step: Callable[[int, TensorDictBase], None] | None,
) -> Played:
    for step in range(1, env.horizon + 1):
        now[keys.ACTION] = policy(now.to(device))[keys.ACTION].to(env.device)
        after = env.step(now)["next"]
        if on_step is not None:
            on_step(step, after)
        yield after[keys.REWARD], after.get(keys.SUCCESS, None)
        now = after.exclude(keys.REWARD, keys.SUCCESS)


def _lean_steps(
    acting: LeanPolicy, env: TrialEnv, now: TensorDictBase, *, device: torch.device, mean_action: bool
) -> Played:
    """The results of `_plain_steps` from plain tensors, in a fraction of the time."""
    row, token = now.to(device), None
    for _ in range(env.horizon):
        step = env.advance(acting(row, token, mean_action).to(env.device))
        yield step.reward, step.success
        row, token = None, token_after(step.observation, step.action, step.reward).to(device)


def _lean_policy(policy: TensorDictModuleBase, noise: Noise) -> LeanPolicy | None:
    """``policy`` for `_lean_steps`; ``None`` if it is not as this package builds it, or has forward hooks."""
    if not isinstance(policy, ExactPolicy):
        acting = Acting.of(policy)
    else:
        acting = None if policy._forward_hooks or policy._forward_pre_hooks else Acting.of(policy.policy)
    if acting is None:
        return None
    acting.prepare()

    def act(row: TensorDictBase | None, token: Tensor | None, mean_action: bool) -> Tensor:
        if not isinstance(policy, ExactPolicy):
            return acting.step(row, token, deterministic=mean_action, noise=noise).action
        row, token = None if row is None else policy.seen(row), None if token is None else token.double()
        return on_grid(acting.step(row, token, deterministic=mean_action, noise=noise).action).float()

    return act


def _start_from(
    boundary: tuple[list[Any], TensorDictBase] | None, now: TensorDictBase, memories: list[Memory]
) -> tuple[list[Any], TensorDictBase]:
    """Sets `memories` and `now`'s keys of the past back to the boundary, which is the present of the first call."""
    if boundary is None:
        return [memory.snapshot() for memory in memories], now.select(*_BOUNDARY).clone()
    snapshots, past = boundary
    for memory, snapshot in zip(memories, snapshots, strict=True):
        memory.go_back(snapshot)
    now.update(past)
    return boundary
