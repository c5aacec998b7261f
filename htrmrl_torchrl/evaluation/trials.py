"""Playing a fixed grid of (task, goal) pairs: every pair is played in one trial, by one lane, and counted once.

A trial has K adaptation episodes and then M that count, in one memory. Success at any step makes an episode a success;
it never ends one. So all lanes are always at the same step of the same episode.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from tqdm import tqdm

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.acting import Acting
from htrmrl_torchrl.agent.noise import Noise, noise_of, sampling_of
from htrmrl_torchrl.envs.shares import LaneShare
from htrmrl_torchrl.envs.trial import TrialEnv
from htrmrl_torchrl.evaluation.exact import ExactPolicy, on_grid
from htrmrl_torchrl.evaluation.protocols import Protocol
from htrmrl_torchrl.memory.contract import Memory, memories_of
from htrmrl_torchrl.memory.windows import token_after
from htrmrl_torchrl.progress import progress_bar

# What an episode's first step tells of the one before.
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
    look: Callable[[int, TensorDictBase], None] | None = None,
    share: LaneShare | None = None,
) -> TensorDict:
    """Plays a number of trials and reports each of their episodes.

    Args:
        policy: writes ``action``, sampled or (under TorchRL's ``ExplorationType.DETERMINISTIC``) the mean. A memory in
            it should be its own, see `htrmrl_torchrl.agent.acting_policy`: it is restarted.
        env: N lanes whose trials have K + M episodes; reset here.
        protocol: how many episodes adapt and count, which actions the latter take, and what they remember. (The
            memories set back are ours; a policy with one of another kind goes on remembering.)
        trials: how many trials count, in the order in which `env` deals them; default N. Where N does not divide it,
            the last lanes of the last round are not counted.
        seed: of the action noise; torch's own random state is left as it was.
        progress: whether it is shown, see `progress_bar`.
        look: called at each episode's start with 0 and what the environment shows ``[N]``, and after each of its steps
            with the step's number and what followed, before the lanes begin anew.
        share: if several processes play the trials: the lanes of `env`. Returned are then all trials of these lanes,
            one round after the other.

    Returns:
        ``[trials]``: ``task`` and ``goal``; and ``[trials, K + M]``: ``success`` (bool), ``return`` (undiscounted) and
        ``steps_to_success`` (counted from 1; 0 where there was none).

    Raises:
        ValueError: if the environment's trials do not have K + M episodes.
    """
    total = protocol.episodes
    if env.episodes_per_trial != total:
        raise ValueError(
            f"The environment's trials have {env.episodes_per_trial} episodes; {protocol.adaptation_episodes} + "
            f"{protocol.evaluation_episodes} = {total} are to be played. Build it with episodes_per_trial={total}."
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
        progress_bar(total=frames, unit=" frames", disable=not progress) as bar,
    ):
        torch.manual_seed(seed)
        kept = memories if protocol.separate else []
        play = partial(_play_round, policy, env, protocol, memories=kept, bar=bar, look=look, share=share)
        outcomes = torch.cat([play() for _ in range(rounds)])
    return outcomes[:trials] if share is None else outcomes


def _play_round(
    policy: TensorDictModuleBase,
    env: TrialEnv,
    protocol: Protocol,
    *,
    memories: list[Memory],
    bar: tqdm,
    look: Callable[[int, TensorDictBase], None] | None,
    share: LaneShare | None,
) -> TensorDict:
    """One trial on every lane, ``[N]``; `memories` are those that each episode that counts sets back."""
    lanes, total = env.batch_size[0], env.episodes_per_trial
    device = next((parameter.device for parameter in policy.parameters()), env.device)
    steps = torch.zeros(lanes, total, dtype=torch.long)
    returns = torch.zeros(lanes, total)
    acting = _lean_policy(policy, noise_of(share)) if look is None else None
    now, boundary = env.reset(), None
    outcome = TensorDict(task=now[keys.TASK].squeeze(-1), goal=now[keys.GOAL].squeeze(-1), batch_size=[lanes])
    for episode in range(total):
        counts = episode >= protocol.adaptation_episodes
        if memories and counts:
            boundary = _start_from(boundary, now, memories)
        mean_action = counts and protocol.evaluation_actions == "mean"
        if look is not None:
            look(0, now)
        with (
            set_exploration_type(ExplorationType.DETERMINISTIC if mean_action else ExplorationType.RANDOM),
            sampling_of(share, policy),
        ):
            if acting is None:
                played = _plain_steps(policy, env, now, device=device, look=look)
            else:
                played = _lean_steps(acting, env, now, device=device, mean_action=mean_action)
            for step, (reward, success) in enumerate(played, 1):
                returns[:, episode] += reward.squeeze(-1)
                if success is not None:  # none where the benchmark says nothing of it
                    steps[:, episode].masked_fill_(success.squeeze(-1) & (steps[:, episode] == 0), step)
                bar.update(lanes)
        # Past the last step of a trial the environment would deal the next pairs.
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
    look: Callable[[int, TensorDictBase], None] | None,
) -> Played:
    for step in range(1, env.horizon + 1):
        now[keys.ACTION] = policy(now.to(device))[keys.ACTION].to(env.device)
        after = env.step(now)["next"]
        if look is not None:
            look(step, after)
        yield after[keys.REWARD], after.get(keys.SUCCESS, None)
        now = after.exclude(keys.REWARD, keys.SUCCESS)


def _lean_steps(
    acting: LeanPolicy, env: TrialEnv, now: TensorDictBase, *, device: torch.device, mean_action: bool
) -> Played:
    """The same numbers from plain tensors, in a fraction of the time."""
    row, token = now.to(device), None
    for _ in range(env.horizon):
        step = env.advance(acting(row, token, mean_action).to(env.device))
        yield step.reward, step.success
        row, token = None, token_after(step.observation, step.action, step.reward).to(device)


def _lean_policy(policy: TensorDictModuleBase, noise: Noise) -> LeanPolicy | None:
    """``policy`` for `_lean_steps`, if it is one of ours and nobody looks on."""
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
    """Puts `memories` and what `now` tells of the past back to the boundary; the first time, it is the present."""
    if boundary is None:
        return [memory.snapshot() for memory in memories], now.select(*_BOUNDARY).clone()
    snapshots, told = boundary
    for memory, snapshot in zip(memories, snapshots, strict=True):
        memory.go_back(snapshot)
    now.update(told)
    return boundary
