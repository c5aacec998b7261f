"""Recording of trials: vectors, attention, remembered windows, and tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.networks import Networks, acting_policy
from htrmrl_torchrl.encoders.contract import ContextEncoder, Inside
from htrmrl_torchrl.envs.trial import TrialEnv
from htrmrl_torchrl.evaluation.protocols import PROTOCOLS
from htrmrl_torchrl.evaluation.trials import play_trials
from htrmrl_torchrl.memory.contract import memories_of
from htrmrl_torchrl.memory.windows import make_token


@dataclass(frozen=True, kw_only=True)
class Recording:
    """N trials of K episodes of H steps, inspected at S steps of each episode; on the CPU.

    Args:
        task, goal: ``[N]``.
        steps: ``[S]``, the inspected steps of an episode, from 0; first and last included.
        tokens: ``[N, K, H + 1, x]``, raw, the final one included.
        success, returns: ``[N, K]``, at any step; undiscounted.
        first_success: ``[N, K]``, the step (from 0) of the first success, H without any.
        hidden: ``[N, K, S, D]``, the encoder's vectors.
        slot_episode, slot_start: ``[N, K, E-1]``, the trial's episode (from 0) in each slot, -1 where it is empty, and
            the first token of its window.
        embedding, past_embedding: of the current windows ``[N, K, S, D]`` and of the past ones ``[N, K, E-1, D]``;
            ``None`` for encoders without windows.
        window_attention: ``[N, K, S, L1, H, T]`` of the newest token, or ``None``.
        slot_attention: ``[N, K, S, L2, H, E]`` of the present (the last slot), or ``None``.
        last: complete maps of each trial's last decision.
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
        return self.tokens.shape[2] - 1

    @property
    def window_mask(self) -> Tensor:
        """``[S, T]``, the valid tokens of the current window; the same in all trials and episodes."""
        if self.window_attention is None:
            raise ValueError("This encoder has no windows.")
        length = self.window_attention.shape[-1]
        return self.steps.unsqueeze(-1) >= length - 1 - torch.arange(length)

    @property
    def slot_mask(self) -> Tensor:
        """``[N, K, E]``, the slots in use; the present always is."""
        return torch.cat([self.slot_episode >= 0, torch.ones(*self.slot_episode.shape[:2], 1, dtype=torch.bool)], -1)


def record_trials(networks: Networks, env: TrialEnv, *, trials: int, every: int, seed: int = 0) -> Recording:
    """Plays trials with sampled actions and records them.

    Args:
        networks: with any encoder; weights, memory and random streams do not change.
        env: N environments, reset here; its `pairs` decide what is played.
        trials: how many are recorded, in the order of `pairs`.
        every: steps between two inspected steps; an episode's first and last step are always inspected.
        seed: of action noise and of the memory's draws; torch's own random state does not change.

    Raises ValueError if `env` defines no success.

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
    (memory,) = memories_of(acting)
    steps = sorted({*range(0, env.horizon, every), env.horizon - 1})
    recorder = _Recorder(networks.encoder, env, steps)
    hook = memory.register_forward_hook(recorder.look_inside)  # type: ignore[attr-defined]
    # The split into adaptation and evaluation does not matter, because all actions are sampled.
    sampled = PROTOCOLS["strict"].changed(adaptation_episodes=env.episodes_per_trial - 1, evaluation_actions="sampled")
    try:
        outcomes = play_trials(acting, env, sampled, trials=trials, seed=seed, on_step=recorder.on_step)
    finally:
        hook.remove()
    steps_to_success = outcomes["steps_to_success"]
    return Recording(
        task=outcomes["task"],
        goal=outcomes["goal"],
        steps=torch.tensor(steps),
        success=outcomes["success"],
        returns=outcomes["return"],
        first_success=torch.where(outcomes["success"], steps_to_success - 1, env.horizon),
        **recorder.fields(trials),
    )


class _Recorder:
    """Collects tokens from `play_trials` and what the memory writes before each action."""

    def __init__(self, encoder: ContextEncoder, env: TrialEnv, steps: Sequence[int]) -> None:
        self._encoder, self._steps = encoder, steps
        self._episodes, self._horizon = env.episodes_per_trial, env.horizon
        self._decisions = 0
        self._tokens: list[Tensor] = []  # [N, x] each
        self._looks: list[dict[str, Tensor]] = []  # [N, ...] each
        self._slots: list[tuple[Tensor, Tensor]] = []  # [N, E-1] each
        self._last: list[dict[str, Tensor]] = []

    def on_step(self, step: int, shown: TensorDictBase) -> None:
        self._tokens.append(make_token(shown))

    def look_inside(self, memory: nn.Module, arguments: object, written: TensorDictBase) -> None:
        episode, step = divmod(self._decisions % (self._episodes * self._horizon), self._horizon)
        self._decisions += 1
        if step not in self._steps:
            return
        inside = self._encoder.inspect(written[keys.CONTEXT])
        self._looks.append(_newest(inside))
        if step == 0:
            self._slots.append(_slots(written, episode))
        if (episode, step) == (self._episodes - 1, self._horizon - 1):
            self._last.append({name: value.cpu() for name, value in vars(inside).items() if value is not None})

    def fields(self, trials: int) -> dict[str, Any]:
        """Fields of a `Recording`."""

        def by_trial(values: Sequence[Tensor], *axes: int) -> Tensor:
            rounds = torch.stack([*values]).unflatten(0, (-1, *axes))  # [rounds, *axes, N, ...]
            return rounds.movedim(1 + len(axes), 1).flatten(0, 1)[:trials].cpu()  # [trials, *axes, ...]

        optional = ("embedding", "past_embedding", "window_attention", "slot_attention")
        looked: dict[str, Tensor | None] = dict.fromkeys(optional)
        for name in self._looks[0]:
            looked[name] = by_trial([look[name] for look in self._looks], self._episodes, len(self._steps))
        if (past := looked["past_embedding"]) is not None:
            looked["past_embedding"] = past[:, :, 0]  # constant within an episode
        episodes, starts = zip(*self._slots, strict=True)
        return {
            "tokens": by_trial(self._tokens, self._episodes, self._horizon + 1),
            "slot_episode": by_trial(episodes, self._episodes),
            "slot_start": by_trial(starts, self._episodes),
            "last": Inside(**{name: torch.cat([last[name] for last in self._last])[:trials] for name in self._last[0]}),
            **looked,
        }


def _newest(inside: Inside) -> dict[str, Tensor]:
    """The vectors, and the newest query's row of each attention map."""
    kept = {name: getattr(inside, name) for name in ("hidden", "embedding", "past_embedding")}
    for name in ("window_attention", "slot_attention"):
        maps = getattr(inside, name)
        kept[name] = None if maps is None else maps[..., -1, :]
    return {name: value for name, value in kept.items() if value is not None}


def _slots(acted: TensorDictBase, episode: int) -> tuple[Tensor, Tensor]:
    """The trial's episode in each slot, ``[N, E-1]``, and the first token of its window."""
    drawn = acted[keys.WINDOW_EPISODE]
    ago = acted[keys.WINDOW_CURRENT] - drawn
    return torch.where(drawn >= 0, episode - ago, -1), acted[keys.WINDOW_START]
