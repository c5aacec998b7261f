"""Playing trials and keeping what was inside: vectors, attention, remembered windows, and the steps themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.networks import Networks, acting_policy
from htrmrl_torchrl.encoders.contract import Inside
from htrmrl_torchrl.envs.trial import TrialEnv
from htrmrl_torchrl.memory.contract import Memory, memories_of
from htrmrl_torchrl.memory.windows import make_token


@dataclass(frozen=True, kw_only=True)
class Recording:
    """N trials of K episodes of H steps, looked into at S steps of each episode; on the CPU.

    Args:
        task, goal: ``[N]``.
        steps: ``[S]``, the steps of an episode (from 0) that were looked into: the first, the last, some between.
        tokens: ``[N, K, H + 1, x]``, raw, the final one included.
        success: ``[N, K]`` bool, at any step.
        returns: ``[N, K]``, undiscounted.
        first_success: ``[N, K]``, the step (from 0) of the first success, H where there was none.
        hidden: ``[N, K, S, D]``, the encoder's vectors.
        slot_episode: ``[N, K, E-1]``, the trial's episode (from 0) that each slot shows, -1 where it is empty.
        slot_start: ``[N, K, E-1]``, the first token of that window.
        embedding: ``[N, K, S, D]`` of the current windows, or ``None`` for encoders without windows.
        past_embedding: ``[N, K, E-1, D]`` of the past windows, or ``None``.
        window_attention: ``[N, K, S, L1, H, T]`` of the newest token, or ``None``.
        slot_attention: ``[N, K, S, L2, H, E]`` of the present (the last slot), or ``None``.
        last: of each trial's last decision, the whole maps.
    """

    task: Tensor
    goal: Tensor
    steps: Tensor
    tokens: Tensor
    success: Tensor
    returns: Tensor
    first_success: Tensor
    hidden: Tensor
    slot_episode: Tensor
    slot_start: Tensor
    embedding: Tensor | None
    past_embedding: Tensor | None
    window_attention: Tensor | None
    slot_attention: Tensor | None
    last: Inside

    @property
    def horizon(self) -> int:
        """H."""
        return self.tokens.shape[2] - 1

    @property
    def window_mask(self) -> Tensor:
        """``[S, T]``, which tokens of the current window there were; all alike in trials and episodes."""
        if self.window_attention is None:
            raise ValueError("This encoder has no windows.")
        length = self.window_attention.shape[-1]
        return self.steps.unsqueeze(-1) >= length - 1 - torch.arange(length)

    @property
    def slot_mask(self) -> Tensor:
        """``[N, K, E]``, which slots held something; the present always does."""
        return torch.cat([self.slot_episode >= 0, torch.ones(*self.slot_episode.shape[:2], 1, dtype=torch.bool)], -1)


def record_trials(networks: Networks, env: TrialEnv, *, trials: int, every: int, seed: int = 0) -> Recording:
    """Plays ``trials`` trials with sampled actions and looks inside.

    Args:
        networks: with any encoder; their weights are used, their memory and random streams are not touched.
        env: N lanes, reset here; its `pairs` decide what is played.
        trials: how many count, in the order in which `env` deals them.
        every: steps between two looks in an episode; the first and the last step are always looked into.
        seed: of action noise and of the memory's draws; torch's own random state is left as it was.

    Raises:
        ValueError: if `env` does not say what solving a task is.

    Example:
        >>> from htrmrl_torchrl import make_env
        >>> from htrmrl_torchrl.agent.networks import build_networks
        >>> networks = build_networks(observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2, episodes=3)
        >>> env = make_env("toy", num_envs=4, episodes_per_trial=2)
        >>> recording = record_trials(networks, env, trials=4, every=6)
        >>> recording.slot_attention.shape, recording.steps.tolist()  # [trials, episodes, looks, layers, heads, slots]
        (torch.Size([4, 2, 2, 2, 4, 3]), [0, 5])
    """
    if keys.SUCCESS not in env.full_reward_spec.keys():
        raise ValueError("This environment defines no success, which most of the inspection is about; choose another.")
    acting = acting_policy(networks, seed=seed)
    (memory,), actor = memories_of(acting), networks.actor
    steps = sorted({*range(0, env.horizon, every), env.horizon - 1})
    rounds: list[TensorDict] = []
    with (
        torch.random.fork_rng(),
        torch.no_grad(),
        set_exploration_type(ExplorationType.RANDOM),
    ):
        torch.manual_seed(seed)
        while len(rounds) * env.batch_size[0] < trials:
            rounds.append(_play_round(networks, memory, actor, env, steps))
    played: Any = torch.cat(rounds)[:trials]
    whole = played.pop("last").to_dict()
    optional = ("embedding", "past_embedding", "window_attention", "slot_attention")
    return Recording(
        steps=torch.tensor(steps),
        last=Inside(**whole),
        **{name: played.get(name, None) for name in optional},
        **played.exclude(*optional).to_dict(),
    )


def _play_round(
    networks: Networks, memory: Memory, actor: torch.nn.Module, env: TrialEnv, steps: Sequence[int]
) -> TensorDict:
    """One trial on every lane, as fields of a `Recording` by name."""
    device = next(networks.encoder.parameters()).device
    lanes, episodes, horizon = env.batch_size[0], env.episodes_per_trial, env.horizon
    first_success = torch.full((lanes, episodes), horizon)
    returns = torch.zeros(lanes, episodes)
    tokens: list[Tensor] = []
    looks: list[dict[str, Tensor]] = []
    slots: list[tuple[Tensor, Tensor]] = []
    now = env.reset()
    task, goal = now[keys.TASK].squeeze(-1), now[keys.GOAL].squeeze(-1)
    for episode in range(episodes):
        for step in range(horizon):
            tokens.append(make_token(now))
            acted = memory(now.to(device))
            if step in steps:
                inside = networks.encoder.inspect(acted[keys.CONTEXT])
                looks.append(_newest(inside))
                if step == 0:
                    slots.append(_slots(acted, episode))
            now[keys.ACTION] = actor(acted)[keys.ACTION].to(env.device)
            after = env.step(now)["next"]
            returns[:, episode] += after[keys.REWARD].squeeze(-1)
            first = after[keys.SUCCESS].squeeze(-1) & (first_success[:, episode] == horizon)
            first_success[:, episode].masked_fill_(first, step)
            if step == horizon - 1:
                tokens.append(make_token(after))
            # Past the last step of a trial the environment would deal the next pairs.
            if step < horizon - 1 or episode < episodes - 1:
                now = env.maybe_reset(after.exclude(keys.REWARD, keys.SUCCESS))
    whole = {name: value.cpu() for name, value in vars(inside).items() if value is not None}
    looked = {name: torch.stack([look[name] for look in looks], 1) for name in looks[0]}  # [N, K * S, ...]
    looked = {name: value.unflatten(1, (episodes, len(steps))).cpu() for name, value in looked.items()}
    if "past_embedding" in looked:
        looked["past_embedding"] = looked["past_embedding"][:, :, 0]  # the same all episode long
    fields = {
        "task": task,
        "goal": goal,
        "tokens": torch.stack(tokens, 1).unflatten(1, (episodes, horizon + 1)),
        "success": first_success < horizon,
        "returns": returns,
        "first_success": first_success,
        "slot_episode": torch.stack([episode for episode, _ in slots], 1).cpu(),
        "slot_start": torch.stack([start for _, start in slots], 1).cpu(),
        "last": whole,
        **looked,
    }
    return TensorDict(fields, batch_size=[lanes])


def _newest(inside: Inside) -> dict[str, Tensor]:
    """What acts: the vectors, and the newest query's row of each attention map."""
    kept = {name: getattr(inside, name) for name in ("hidden", "embedding", "past_embedding")}
    for name in ("window_attention", "slot_attention"):
        maps = getattr(inside, name)
        kept[name] = None if maps is None else maps[..., -1, :]
    return {name: value for name, value in kept.items() if value is not None}


def _slots(acted: TensorDictBase, episode: int) -> tuple[Tensor, Tensor]:
    """Which episode of the trial each slot shows, ``[N, E-1]``, and from which token on."""
    drawn = acted[keys.WINDOW_EPISODE]
    ago = acted[keys.WINDOW_CURRENT] - drawn
    return torch.where(drawn >= 0, episode - ago, -1), acted[keys.WINDOW_START]
