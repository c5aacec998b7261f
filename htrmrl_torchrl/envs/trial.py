"""Trials: K episodes of one (task, goal) per lane, and what an agent observes at their boundaries.

One lane with ``episodes_per_trial = K = 2`` and ``horizon = H = 2``, rows as a collector stores them (o3 is the
observation after an episode's last step; it is never acted on, so only ``final`` carries it on):

    row          0    1  |  2    3  ||  4    5
    observation  o0   o1 |  o4   o5 ||  o8   o9
    episode      0    0  |  1    1  ||  0    0
    is_init      1    0  |  1    0  ||  1    0
    trial_init   1    0  |  0    0  ||  1    0
    prev_reward  0    r0 |  0    r2 ||  0    r4
    final        0    0  |  end  0  ||  end  0      (end: last observation, action and reward of the episode before)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from htrmrl_torchrl import keys
from htrmrl_torchrl.envs.lanes import Deck, IntArray, Lanes, Picture, check_positive
from htrmrl_torchrl.envs.shares import DeckShare, LaneShare
from htrmrl_torchrl.envs.workers import WorkerLanes
from htrmrl_torchrl.faults import check_finite


class TrialCounter:
    """Where each lane is in its trial, and the last token it saw.

    Everything that :class:`TrialEnv` and ``TrialTransform`` add to a tensordict follows from six tensors: ``episode``,
    ``is_init`` and ``trial_init`` [*batch, 1], and the last step's ``observation`` [*batch, o], executed ``action``
    [*batch, a] and ``reward`` [*batch, 1] (zero before a lane's first step).

    Args:
        batch_size: the environment's batch size, ``[]`` included.
        observation_shape, action_shape: of one lane.
        episodes_per_trial: K; the reset after a lane's K-th episode starts a new trial.
        device, observation_dtype: of the tensors.

    Raises:
        ValueError: if ``episodes_per_trial`` is below 1.
    """

    def __init__(
        self,
        batch_size: Sequence[int],
        *,
        observation_shape: Sequence[int],
        action_shape: Sequence[int],
        episodes_per_trial: int,
        device: torch.device | None = None,
        observation_dtype: torch.dtype = torch.float32,
    ) -> None:
        check_positive(episodes_per_trial=episodes_per_trial)
        self.episodes_per_trial = episodes_per_trial
        self.batch_size = torch.Size(batch_size)
        shape = (*batch_size, 1)
        self.episode = torch.full(shape, -1, dtype=torch.int64, device=device)  # -1: nothing started yet
        self.is_init = torch.zeros(shape, dtype=torch.bool, device=device)
        self.trial_init = torch.zeros(shape, dtype=torch.bool, device=device)
        self.none_init = torch.zeros(shape, dtype=torch.bool, device=device)  # nobody writes into it
        self.observation = torch.zeros((*batch_size, *observation_shape), dtype=observation_dtype, device=device)
        self.action = torch.zeros((*batch_size, *action_shape), device=device)
        self.reward = torch.zeros(shape, device=device)

    def reset(self, mask: Tensor | None, *, new_trial: bool = False) -> Tensor:
        """Start the next episode where ``mask`` [*batch, 1] is True; with ``new_trial``, or no mask, new trials.

        Returns:
            Tensor: bool [*batch, 1], the lanes on which a new trial starts.
        """
        if mask is None:
            mask, new_trial = torch.ones_like(self.is_init), True
        started = mask & ((self.episode < 0) | (self.episode + 1 >= self.episodes_per_trial) | new_trial)
        self.episode = torch.where(mask, self.episode + 1, self.episode).masked_fill(started, 0)
        self.is_init = self.is_init | mask
        self.trial_init = torch.where(mask, started, self.trial_init)
        return started

    def step(self, observation: Tensor, action: Tensor, reward: Tensor) -> None:
        """Note the token that a step of all lanes led to; ``action`` is the one executed."""
        # Copies: the caller may reuse its buffers, and these must survive until the next episode's first row.
        self.keep(observation.clone(), *(value.to(torch.float32, copy=True) for value in (action, reward)))

    def keep(self, observation: Tensor, action: Tensor, reward: Tensor) -> None:
        """As `step`, for tensors (of float32, action and reward) that nobody writes into afterwards."""
        self.is_init = self.trial_init = self.none_init
        self.observation, self.action, self.reward = observation, action, reward

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Replace each tensor by what ``fn`` makes of it, on another device for instance."""
        for name in ("episode", "is_init", "trial_init", "none_init", "observation", "action", "reward"):
            setattr(self, name, fn(getattr(self, name)))

    def write(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Add the keys that belong to the lanes' present rows, after a reset as well as after a step."""
        action_init = self.is_init.reshape(*self.batch_size, *(1,) * (self.action.ndim - len(self.batch_size)))
        observation_init = self.is_init.reshape(
            *self.batch_size, *(1,) * (self.observation.ndim - len(self.batch_size))
        )
        tensordict.set(keys.EPISODE, self.episode.clone())  # copies: whoever writes into a row must not write into us
        tensordict.set(keys.IS_INIT, self.is_init.clone())
        tensordict.set(keys.TRIAL_INIT, self.trial_init.clone())
        tensordict.set(keys.PREV_ACTION, self.action.masked_fill(action_init, 0))
        tensordict.set(keys.PREV_REWARD, self.reward.masked_fill(self.is_init, 0))
        tensordict.set(keys.FINAL_OBSERVATION, self.observation.masked_fill(~observation_init, 0))
        tensordict.set(keys.FINAL_ACTION, self.action.masked_fill(~action_init, 0))
        tensordict.set(keys.FINAL_REWARD, self.reward.masked_fill(~self.is_init, 0))
        return tensordict

    def spec(self) -> Composite:
        """Specs of the keys that :meth:`write` adds."""
        spec = Composite(shape=self.batch_size, device=self.episode.device)
        spec[keys.EPISODE] = Unbounded(self.episode.shape, dtype=torch.int64, device=self.episode.device)
        for key, flag in ((keys.IS_INIT, self.is_init), (keys.TRIAL_INIT, self.trial_init)):
            spec[key] = Categorical(2, shape=flag.shape, dtype=torch.bool, device=flag.device)
        final = Composite(shape=self.batch_size, device=self.episode.device)
        for (_, name), value in (
            (keys.FINAL_OBSERVATION, self.observation),
            (keys.FINAL_ACTION, self.action),
            (keys.FINAL_REWARD, self.reward),
        ):
            final[name] = Unbounded(value.shape, dtype=value.dtype, device=value.device)
        spec[keys.PREV_ACTION] = final[keys.FINAL_ACTION[1]].clone()
        spec[keys.PREV_REWARD] = final[keys.FINAL_REWARD[1]].clone()
        spec[keys.FINAL_OBSERVATION[0]] = final
        return spec


class Step(NamedTuple):
    """What a step of N lanes led to, and what they play. Nobody writes into it."""

    observation: Tensor  # [N, o]
    action: Tensor  # [N, a], the executed one
    reward: Tensor  # [N, 1]
    success: Tensor | None  # [N, 1], bool; none where the lanes say nothing of it
    episode: Tensor  # [N, 1]
    pair: Tensor  # [N, 2], task and goal
    ended: bool  # whether an episode has ended in some lane


class TrialEnv(EnvBase):
    """``N`` lanes that play trials: ``batch_size=[N]``, every key of ``keys.py`` that an environment writes.

    Episodes always run to ``horizon``, where ``truncated`` and ``done`` become True; ``terminated`` never does.
    ``("next", "success")`` is whether the task was solved in that step (where the benchmark defines it); it ends
    nothing. Actions outside the spec are clipped on execution, and ``prev_action`` holds the clipped one.

    A full reset starts a new trial on all lanes; a masked one (TorchRL's ``"_reset"``, even if it is all True) starts
    the lane's next episode, or its next trial after ``episodes_per_trial``. After a fault, a full reset starts anew.

    Args:
        lanes: the simulators; closed with the environment.
        deck: deals (task, goal) at each trial's start.
        episodes_per_trial: K.
        horizon: H, steps per episode; a trial takes K * H frames of its lane.
        seed: of what is random in the episodes' starts.
        success: whether the lanes say what solving a task is; else there is no ``("next", "success")``.
        share: which of a run's lanes these are, if several processes play it; `deck` is then of all lanes.

    Raises:
        ValueError: if ``episodes_per_trial`` or ``horizon`` is below 1.
        NonFiniteError: (a ValueError) from the reset or step in which something is not finite, naming it and its lanes.
        WorkerFault: (a RuntimeError) from the reset or step in which a worker process raises, dies or hangs.

    Example:
        >>> from htrmrl_torchrl.envs.deck import FixedGrid
        >>> from htrmrl_torchrl.envs.toy import ToyLanes
        >>> lanes = ToyLanes(num_lanes=2, horizon=6)
        >>> env = TrialEnv(lanes, FixedGrid([(0, 0), (0, 1)]), episodes_per_trial=2, horizon=6)
        >>> env.rollout(12, break_when_any_done=False)["episode"][0].flatten().tolist()
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    """

    def __init__(
        self,
        lanes: Lanes,
        deck: Deck,
        *,
        episodes_per_trial: int,
        horizon: int,
        seed: int = 0,
        success: bool = True,
        share: LaneShare | None = None,
    ) -> None:
        check_positive(episodes_per_trial=episodes_per_trial, horizon=horizon)
        super().__init__(batch_size=[lanes.num_lanes], device="cpu")
        self.horizon, self.episodes_per_trial = horizon, episodes_per_trial
        self._lanes, self._start_seed, self._says_success = lanes, seed, success
        self._deck = deck if share is None else DeckShare(deck, share)
        self._share = LaneShare(0, lanes.num_lanes, lanes.num_lanes) if share is None else share
        self._low, self._high = torch.from_numpy(lanes.action_low), torch.from_numpy(lanes.action_high)
        self._counter = TrialCounter(
            self.batch_size,
            observation_shape=(lanes.obs_dim,),
            action_shape=self._low.shape,
            episodes_per_trial=episodes_per_trial,
        )
        n = lanes.num_lanes
        self._steps = torch.zeros(n, 1, dtype=torch.int64)
        self._to_go = horizon  # steps until an episode ends in some lane
        self._resets = 0
        self._pair = torch.zeros(n, 2, dtype=torch.int64)  # (task, goal) that the lane plays
        self._observation = torch.zeros(n, lanes.obs_dim)
        self._pending: list[tuple[int, int]] | None = None  # loaded from a checkpoint, for the next full reset
        self._make_specs(n, lanes.obs_dim)

    def _make_specs(self, n: int, obs_dim: int) -> None:
        observation = self._counter.spec()
        observation[keys.OBSERVATION] = Unbounded((n, obs_dim))
        observation[keys.TASK] = Unbounded((n, 1), dtype=torch.int64)
        observation[keys.GOAL] = Unbounded((n, 1), dtype=torch.int64)
        self.observation_spec = observation
        self.action_spec = Bounded(self._low.expand(n, -1), self._high.expand(n, -1))
        # A second entry of the reward spec is what TorchRL keeps under "next" only, and out of the done logic.
        flag = Categorical(2, shape=(n, 1), dtype=torch.bool)
        success = {keys.SUCCESS: flag.clone()} if self._says_success else {}
        self.reward_spec = Composite({keys.REWARD: Unbounded((n, 1)), **success}, shape=[n])
        self.done_spec = Composite(
            {key: flag.clone() for key in (keys.DONE, keys.TERMINATED, keys.TRUNCATED)}, shape=[n]
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is not None:
            mask = mask.reshape(self._steps.shape)
        new_trial = self._counter.reset(mask)
        fresh = torch.nonzero(new_trial[:, 0])[:, 0]
        if fresh.numel():
            pairs = self._pending if mask is None and self._pending else self._deck.deal(fresh.tolist())
            self._pair = self._pair.index_copy(0, fresh, torch.tensor(pairs, dtype=torch.int64))
            self._pending = None
        started = torch.arange(len(self._steps)) if mask is None else torch.nonzero(mask[:, 0])[:, 0]
        if started.numel():
            tasks, goals = self._pair[started].unbind(-1)
            lanes = started.numpy()
            drawn = self._lanes.reset(lanes, tasks.numpy(), goals.numpy(), self._draw_starts()[lanes])
            observation = torch.from_numpy(drawn)
            self._observation = self._observation.index_copy(0, started, observation)
            check_finite([(keys.OBSERVATION, self._observation)])
            self._steps = self._steps.index_fill(0, started, 0)
            self._to_go = self.horizon - int(self._steps.max())
        return self.row()

    def _draw_starts(self) -> IntArray:
        """A random number for the next start of each lane [N], determined by the seed and the number of resets."""
        rng = np.random.default_rng([self._start_seed, self._resets])
        self._resets += 1
        draws: IntArray = self._share.of(rng.integers(2**31, size=self._share.total))
        return draws

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if "_step" in tensordict.keys():
            raise RuntimeError("TrialEnv steps all lanes together; use rollout(..., break_when_any_done=False).")
        step = self.advance(tensordict.get(keys.ACTION).detach())
        result = self.row().set(keys.REWARD, step.reward)
        return result if step.success is None else result.set(keys.SUCCESS, step.success)

    def advance(self, action: Tensor) -> Step:
        """Steps all lanes with ``action`` ``[N, a]``: what `step` does, on plain tensors.

        Where an episode has ended, go on with ``maybe_reset(row())``.

        Raises:
            NonFiniteError, WorkerFault: as `step` does.
        """
        check_finite([(keys.ACTION, action)])  # a policy's fault, but this is where it would do harm
        action = torch.clamp(action, self._low, self._high)
        observation, reward, success = (torch.from_numpy(x) for x in self._lanes.step(action.numpy()))
        check_finite([(keys.OBSERVATION, observation), (keys.REWARD, reward)])
        reward, solved = reward[:, None], success[:, None] if self._says_success else None
        self._observation, self._steps, self._to_go = observation, self._steps + 1, self._to_go - 1
        self._counter.keep(observation, action, reward)
        return Step(observation, action, reward, solved, self._counter.episode, self._pair, self._to_go <= 0)

    def row(self) -> TensorDictBase:
        """What the lanes show now, after a reset as well as after a step."""
        truncated = self._steps >= self.horizon
        row = {
            keys.OBSERVATION: self._observation.clone(),
            keys.TASK: self._pair[:, :1].clone(),
            keys.GOAL: self._pair[:, 1:].clone(),
            keys.TRUNCATED: truncated,
            keys.TERMINATED: torch.zeros_like(truncated),
            keys.DONE: truncated.clone(),
        }
        return self._counter.write(TensorDict(row, batch_size=self.batch_size, device=self.device))

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._deck.reseed(seed)
            self._pending, self._start_seed, self._resets = None, seed, 0

    def streams(self) -> dict[str, Any]:
        """What decides future deals and starts, at any time, for `follow` in a process that plays other lanes."""
        return {"deck": self._deck.state(), "resets": self._resets}

    def follow(self, streams: dict[str, Any]) -> None:
        """Deals and draws from the next full reset on as the process that returned ``streams``."""
        self._deck.load_state(streams["deck"])
        self._pending, self._resets = None, streams["resets"]

    def checkpoint_state(self) -> dict[str, Any]:
        """What is needed to go on at a trial boundary: plain ints, lists, strings and tensors.

        Where all lanes are at the first step of a trial, as a collector leaves them, the dealt (task, goal) pairs are
        saved and dealt again by the first full reset after loading. Raises RuntimeError in the middle of a trial,
        because simulators are not saved.
        """
        counter, pending = self._counter, self._pending
        dealt = bool(counter.trial_init.all())
        ended = bool(((counter.episode + 1 == self.episodes_per_trial) & (self._steps >= self.horizon)).all())
        unstarted = bool((counter.episode < 0).all())
        resets = self._resets
        if pending is None and dealt:
            resets -= 1  # like the deal, the start is repeated
            pending = [(task, goal) for task, goal in self._pair.tolist()]
        elif pending is None and not (ended or unstarted):
            raise RuntimeError(
                f"Checkpoints are possible at trial boundaries only; lanes are at episode "
                f"{counter.episode.flatten().tolist()}, step {self._steps.flatten().tolist()} of trials of "
                f"{self.episodes_per_trial} x {self.horizon}; collect whole trials per batch."
            )
        return {
            "deck": self._deck.state(),
            "pending": pending and [list(pair) for pair in pending],
            "resets": resets,
            "final": {
                "observation": counter.observation.clone(),
                "action": counter.action.clone(),
                "reward": counter.reward.clone(),
            },
        }

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`checkpoint_state` returned, at the next full reset; ValueError if it does not fit."""
        final = state["final"]
        received = (tuple(final["observation"].shape), tuple(final["action"].shape))
        allowed = (tuple(self._counter.observation.shape), tuple(self._counter.action.shape))
        if received != allowed:
            raise ValueError(
                f"The saved observation and action have shapes {received}, this environment's are {allowed}; "
                "build the environment it was saved from."
            )
        pending = state["pending"] and [tuple(pair) for pair in state["pending"]]
        if pending and not (len(pending) == len(self._pair) and all(self._deck.deals(*pair) for pair in pending)):
            raise ValueError(f"The saved (task, goal) pairs, {pending[:3]} and so on, are not of this environment.")
        self._deck.load_state(state["deck"])
        self._pending = pending
        self._resets = int(state["resets"])
        self._counter.observation = final["observation"].clone()
        self._counter.action = final["action"].clone()
        self._counter.reward = final["reward"].clone()

    @property
    def divergences(self) -> int:
        """How often a simulator has diverged so far and was put back by MuJoCo, all lanes together."""
        return self._lanes.divergences

    @property
    def worker_restarts(self) -> int:
        """How often new worker processes took the place of failed ones so far."""
        return self._lanes.restarts if isinstance(self._lanes, WorkerLanes) else 0

    def render_lane(self, lane: int, *, size: int = 256) -> Picture:
        """A picture of one lane, uint8 [size, size, 3]; nothing that is played changes by looking.

        Raises:
            ValueError: if ``size`` is below 1, there is no such lane, or it lives in a worker process.
            RenderingError: if it takes OpenGL (Meta-World) and no backend works.
        """
        check_positive(size=size)
        if not 0 <= lane < len(self._steps):
            raise ValueError(f"lane must be from 0 to {len(self._steps) - 1}, received {lane}.")
        return self._lanes.render(lane, size=size)

    def close(self, **kwargs: Any) -> None:
        """Close the simulators (and worker processes, if there are any)."""
        self._lanes.close()
        super().close(**kwargs)
