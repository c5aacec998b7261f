"""TorchRL's collector with a faster rollout, which does only the necessary work at each step.

TorchRL's rollout builds a TensorDict of all environment keys at every step, and stacks them. Here a step adds rows of
plain tensors, and the batch becomes one TensorDict. Trial keys follow from these rows, except where an episode ends.
There, and at the batch's start, the environment gives a whole row, as for TorchRL.

::

    step         0      1      2      3    ||  4      5
    whole row    row                       ||  row
    next              o1     o2     o3     o4 ||     o6      observation, action and reward of each step
    root         row    o1     o2     o3   ||  row    o5     the whole row, then the results of previous steps
"""

from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType
from torchrl.modules import IndependentNormal

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.acting import Acting, Decision
from htrmrl_torchrl.agent.noise import noise_of, sampling_of
from htrmrl_torchrl.envs.shares import LaneShare
from htrmrl_torchrl.envs.trial import Step, TrialEnv
from htrmrl_torchrl.memory.windows import token_after

_DETERMINISTIC = {ExplorationType.RANDOM: False, ExplorationType.DETERMINISTIC: True}
_AT_SEAMS: tuple[NestedKey, ...] = (
    keys.IS_INIT, keys.TRIAL_INIT, keys.FINAL_OBSERVATION, keys.FINAL_ACTION, keys.FINAL_REWARD,
)  # fmt: skip
_SHOWN: tuple[NestedKey, ...] = (
    keys.OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.EPISODE, keys.TASK, keys.GOAL, *_AT_SEAMS
)  # fmt: skip
_DONE = (keys.DONE, keys.TERMINATED, keys.TRUNCATED)
_TRAJECTORY = ("collector", "traj_ids")


class TrialCollector(Collector):
    """A `Collector` that gives the same batches in a fraction of the time, for a `TrialEnv` and a policy of
    `make_actor_critic`. Otherwise, or if the policy has forward hooks, it uses TorchRL's rollout.

    Arguments, devices, hooks, weight updates and state dict are the `Collector`'s; besides, if several processes act
    in the environments of one run, ``share`` are those of this one.

    Example:
        >>> from htrmrl_torchrl import make_env
        >>> from htrmrl_torchrl.agent.networks import build_networks
        >>> networks = build_networks(observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2)
        >>> env = make_env("toy", num_envs=4, horizon=6, episodes_per_trial=2)
        >>> collector = TrialCollector(env, networks.policy, frames_per_batch=48, auto_register_policy_transforms=False)
        >>> next(collector.iterator()).shape
        torch.Size([4, 12])
    """

    _carrier: TensorDictBase  # the environment's present row

    def __init__(self, env: EnvBase, policy: TensorDictModuleBase, *, share: LaneShare | None = None, **others: Any):
        self._share = share
        with sampling_of(share, policy):  # it tries out the policy
            super().__init__(env, policy, **others)

    @torch.no_grad()
    def rollout(self) -> TensorDictBase | None:
        acting = Acting.of(self._wrapped_policy) if self._is_plain() else None
        if acting is None:
            with sampling_of(self._share, self._wrapped_policy):
                return super().rollout()  # type: ignore[no-any-return]
        if self.pre_collect_hook is not None:
            self.pre_collect_hook()
        acting.prepare()
        return self._play(acting)

    def _is_plain(self) -> bool:
        """Whether only options are used that `_play` supports."""
        special = (
            self.replay_buffer, self.interruptor, self.reset_at_each_iter, self.init_random_frames,
            self.compiled_policy, self.cudagraphed_policy, self._compact_next_keys, self._truncated_keys,
        )  # fmt: skip
        return (
            type(self.env) is TrialEnv
            and self.exploration_type in _DETERMINISTIC
            and bool(self._use_buffers)
            and not any(special)
        )

    def _play(self, acting: Acting) -> TensorDictBase:
        device, mean_action = self.policy_device or self.env.device, _DETERMINISTIC[self.exploration_type]
        batch, token, noise = _Batch(), None, noise_of(self._share)
        row: TensorDictBase | None = self._carrier.select(*_SHOWN, *_DONE)
        trajectories: Tensor | None = self._carrier.get(_TRAJECTORY, None)
        try:
            for _ in range(self.frames_per_batch):
                if row is not None:
                    batch.begin(row)
                seen = None if row is None else row.to(device)
                decision = acting.step(seen, token, deterministic=mean_action, noise=noise)
                step, row = self.env.advance(decision.action.to(self.env.device)), None
                batch.add(decision, step, acting.memory.noted(), trajectories)
                if step.ended:
                    after = batch.end(self.env.row())
                    if trajectories is not None:
                        trajectories = self._following(trajectories, after)
                    row = self.env.maybe_reset(after.copy())  # it modifies its argument
                token = token_after(step.observation, step.action, step.reward).to(device)
        finally:  # after an interrupt the collector must match the environment
            self._carrier = (self.env.row() if row is None else row).copy()
            if self._carrier_has_no_device:
                self._carrier.clear_device_()
            if trajectories is not None:
                self._carrier.set(_TRAJECTORY, trajectories)
        return batch.write(self._final_rollout)

    def _following(self, trajectories: Tensor, after: TensorDictBase) -> Tensor:
        """Trajectory numbers of the environments ``[N]``, new ones where an episode ended with ``after``."""
        self._carrier = after.copy().set(_TRAJECTORY, trajectories)
        self._update_traj_ids(TensorDict(next=after, batch_size=after.batch_size))
        return self._carrier.get(_TRAJECTORY)


class _Batch:
    """Collects the steps of a batch and writes them to a TensorDict."""

    def __init__(self) -> None:
        self._steps: list[tuple[Decision, Step, dict[NestedKey, Tensor], Tensor | None]] = []
        self._rows: list[tuple[int, TensorDictBase]] = []
        self._ends: list[tuple[int, TensorDictBase]] = []

    def begin(self, row: TensorDictBase) -> None:
        """Adds the whole row at which the next step starts."""
        self._rows.append((len(self._steps), row))

    def add(self, *step: Any) -> None:
        """Adds a step: decision, result, the memory's keys, and trajectory numbers."""
        self._steps.append(step)  # type: ignore[arg-type]

    def end(self, row: TensorDictBase) -> TensorDictBase:
        """Adds the row after a step that ended any environment's episode, and returns it."""
        self._ends.append((len(self._steps) - 1, row))
        return row

    def write(self, out: TensorDictBase) -> TensorDictBase:
        """Fills ``out`` ``[N, T]``, which has all keys of the environment and the policy, and returns it."""
        for key, column in self._columns():
            out.get(key).copy_(column)
        for key in (*_AT_SEAMS, *_DONE):
            after = out.get(_next(key)).zero_()
            for time, row in self._ends:
                after[:, time] = row.get(key)
        for key in (*_SHOWN, *_DONE):
            column = out.get(key)
            column[:, 1:] = out.get(_next(key))[:, :-1]
            for time, row in self._rows:
                column[:, time] = row.get(key)
        return out

    def _columns(self) -> Iterator[tuple[NestedKey, Tensor]]:
        """All entries that change from step to step, ``[N, T, ...]``."""
        decisions, steps, noted, trajectories = zip(*self._steps, strict=True)
        action, loc, scale, *value = (torch.stack(c, -2) for c in zip(*decisions, strict=True) if c[0] is not None)
        yield keys.ACTION, action
        yield keys.LOG_PROB, IndependentNormal(loc, scale.expand_as(loc)).log_prob(action)
        yield from ((keys.STATE_VALUE, column) for column in value)
        reward, pair = (torch.stack([getattr(s, name) for s in steps], 1) for name in ("reward", "pair"))
        for key in (keys.OBSERVATION, keys.SUCCESS, keys.EPISODE):
            if getattr(steps[0], key) is not None:
                yield _next(key), torch.stack([getattr(step, key) for step in steps], 1)
        yield _next(keys.PREV_ACTION), torch.stack([step.action for step in steps], 1)
        yield from ((_next(key), reward) for key in (keys.PREV_REWARD, keys.REWARD))
        yield from ((_next(key), pair[..., i : i + 1]) for i, key in enumerate((keys.TASK, keys.GOAL)))
        yield from ((key, torch.stack([n[key] for n in noted], 1)) for key in noted[0])
        if trajectories[0] is not None:
            yield _TRAJECTORY, torch.stack(trajectories, 1)


def _next(key: NestedKey) -> NestedKey:
    return ("next", key) if isinstance(key, str) else ("next", *key)
