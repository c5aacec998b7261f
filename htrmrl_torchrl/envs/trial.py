"""Trials: K episodes of one (task, goal) per environment, and the observations at their boundaries.

One environment with ``episodes_per_trial = K = 2`` and ``horizon = H = 2``, in rows as a collector stores them. (o2 and
o5 are the observations after an episode's last step. No action follows them, so only ``final`` contains them.)

    row          0    1  |  2    3  ||  4    5
    observation  o0   o1 |  o3   o4 ||  o6   o7
    episode      0    0  |  1    1  ||  0    0
    is_init      1    0  |  1    0  ||  1    0
    trial_init   1    0  |  0    0  ||  1    0
    prev_reward  0    r0 |  0    r2 ||  0    r4
    final        0    0  |  end  0  ||  end  0      (end: last observation, action and reward of the previous episode)
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
from htrmrl_torchrl.envs.disguise import TrialDisguise
from htrmrl_torchrl.envs.lanes import BoolArray, Deck, FloatArray, IntArray, Lanes, Picture, check_positive
from htrmrl_torchrl.envs.shares import DeckShare, LaneShare, check_shared
from htrmrl_torchrl.envs.workers import WorkerLanes
from htrmrl_torchrl.faults import check_finite


class TrialCounter:
    """Position of each environment in its trial, and its newest token.

    All keys that :class:`TrialEnv` and ``TrialTransform`` add to a tensordict follow from six tensors: ``episode``,
    ``is_init`` and ``trial_init`` [*batch, 1], and the last step's ``observation`` [*batch, o], executed ``action``
    [*batch, a] and ``reward`` [*batch, 1] (zero before an environment's first step).

    Args:
        batch_size: the environment's batch size, ``[]`` included.
        observation_shape, action_shape: of one environment.
        episodes_per_trial: K; the reset after an environment's K-th episode starts a new trial.
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
        self.length = torch.full_like(self.episode, episodes_per_trial)  # of the running trial, in episodes
        self.is_init = torch.zeros(shape, dtype=torch.bool, device=device)
        self.trial_init = torch.zeros(shape, dtype=torch.bool, device=device)
        self.none_init = torch.zeros(shape, dtype=torch.bool, device=device)  # read-only
        self.observation = torch.zeros((*batch_size, *observation_shape), dtype=observation_dtype, device=device)
        self.action = torch.zeros((*batch_size, *action_shape), device=device)
        self.reward = torch.zeros(shape, device=device)

    def reset(self, mask: Tensor | None, *, new_trial: bool = False) -> Tensor:
        """Starts the next episode where ``mask`` [*batch, 1] is True; with ``new_trial`` or no mask, new trials.

        Returns:
            Tensor: bool [*batch, 1], True where a new trial starts.
        """
        if mask is None:
            mask, new_trial = torch.ones_like(self.is_init), True
        started = mask & ((self.episode < 0) | (self.episode + 1 >= self.length) | new_trial)
        self.episode = torch.where(mask, self.episode + 1, self.episode).masked_fill(started, 0)
        self.is_init = self.is_init | mask
        self.trial_init = torch.where(mask, started, self.trial_init)
        return started

    def step(self, observation: Tensor, action: Tensor, reward: Tensor) -> None:
        """Stores the token after a step of all environments; ``action`` is the executed one."""
        # Copies: the caller may reuse its buffers, and these must survive until the next episode's first row.
        self.keep(observation.clone(), *(value.to(torch.float32, copy=True) for value in (action, reward)))

    def keep(self, observation: Tensor, action: Tensor, reward: Tensor) -> None:
        """As `step`, for tensors that are not modified afterwards; action and reward are float32."""
        self.is_init = self.trial_init = self.none_init
        self.observation, self.action, self.reward = observation, action, reward

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Replaces each tensor by ``fn`` of it, for instance to move it to another device."""
        for name in ("episode", "length", "is_init", "trial_init", "none_init", "observation", "action", "reward"):
            setattr(self, name, fn(getattr(self, name)))

    def write(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Adds the keys of the environments' present rows, after a reset as well as after a step."""
        action_init = self.is_init.reshape(*self.batch_size, *(1,) * (self.action.ndim - len(self.batch_size)))
        observation_init = self.is_init.reshape(
            *self.batch_size, *(1,) * (self.observation.ndim - len(self.batch_size))
        )
        tensordict.set(keys.EPISODE, self.episode.clone())  # copies, because rows may be modified
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
    """Result of a step of N environments, and their tasks and goals; read-only."""

    observation: Tensor  # [N, o]
    action: Tensor  # [N, a], the executed one
    reward: Tensor  # [N, 1]
    success: Tensor | None  # [N, 1], bool; None if the benchmark does not define success
    episode: Tensor  # [N, 1]
    pair: Tensor  # [N, 2], task and goal
    ended: bool  # whether any environment's episode has ended


class TrialEnv(EnvBase):
    """``N`` environments that play trials: ``batch_size=[N]``, with every environment key of ``keys.py``.

    Episodes always run to ``horizon``, where ``truncated`` and ``done`` become True; ``terminated`` is never True.
    ``("next", "success")`` is whether the task was solved in that step, if the benchmark defines success; it never ends
    an episode. Actions outside the spec are clipped on execution, and ``prev_action`` is the clipped action.

    A full reset starts new trials everywhere. A masked one (TorchRL's ``"_reset"``, even if all True) starts the next
    episode, or the next trial after ``episodes_per_trial`` episodes. After a fault, continue with a full reset.

    Args:
        lanes: the simulators; closed with the environment.
        deck: deals (task, goal) at each trial's start.
        episodes_per_trial: K.
        shortest_trial: the K episodes are split at random into trials of at least this many episodes, in each
            environment differently; default one trial of K.
        horizon: H, steps per episode; K * H frames are one trial, or several if they are split.
        seed: of the random starts of episodes.
        success: whether the benchmark defines success; otherwise there is no ``("next", "success")``.
        disguise: changes the observations, actions and rewards of each trial.
        share: if several processes play the environments of one run: those of this one; `deck` is that of all.

    Raises:
        ValueError: if ``episodes_per_trial`` or ``horizon`` is below 1.
        NonFiniteError: (a ValueError) if a reset or step gives a value that is not finite; it names the environments.
        WorkerFault: (a RuntimeError) if a worker process raises, dies or hangs in a reset or step.

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
        shortest_trial: int | None = None,
        disguise: TrialDisguise | None = None,
        share: LaneShare | None = None,
    ) -> None:
        shortest = episodes_per_trial if shortest_trial is None else shortest_trial
        check_positive(episodes_per_trial=episodes_per_trial, horizon=horizon, shortest_trial=shortest)
        if shortest > episodes_per_trial:
            raise ValueError(f"shortest_trial={shortest} must be at most episodes_per_trial={episodes_per_trial}.")
        check_shared(share, split_trials=shortest < episodes_per_trial, disguises=disguise is not None)
        super().__init__(batch_size=[lanes.num_lanes], device="cpu")
        self.horizon, self.episodes_per_trial = horizon, episodes_per_trial
        self._lanes, self._start_seed, self._says_success = lanes, seed, success
        self._deck = deck if share is None else DeckShare(deck, share)
        self._share = LaneShare(0, lanes.num_lanes, lanes.num_lanes) if share is None else share
        self._shortest_trial, self._disguise = shortest, disguise
        self._low, self._high = torch.from_numpy(lanes.action_low), torch.from_numpy(lanes.action_high)
        self._counter = TrialCounter(
            self.batch_size,
            observation_shape=(lanes.obs_dim,),
            action_shape=self._low.shape,
            episodes_per_trial=episodes_per_trial,
        )
        n = lanes.num_lanes
        self._steps = torch.zeros(n, 1, dtype=torch.int64)
        self._left = torch.zeros(n, dtype=torch.int64)  # of the K episodes, those after the running trial
        self._to_go = horizon  # steps until an episode ends in any environment
        self._resets = 0
        self._pair = torch.zeros(n, 2, dtype=torch.int64)  # (task, goal) of each environment
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
        # As a second entry of the reward spec, success is under "next" only and does not enter TorchRL's done logic.
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
            self._draw_lengths(fresh, anew=mask is None)
            pairs = self._pending if mask is None and self._pending else self._deck.deal(fresh.tolist())
            self._pair = self._pair.index_copy(0, fresh, torch.tensor(pairs, dtype=torch.int64))
            self._pending = None
        started = torch.arange(len(self._steps)) if mask is None else torch.nonzero(mask[:, 0])[:, 0]
        if started.numel():
            tasks, goals = self._pair[started].unbind(-1)
            lanes, number = started.numpy(), self._resets
            drawn = self._lanes.reset(lanes, tasks.numpy(), goals.numpy(), self._draw_starts()[lanes])
            if self._disguise is not None:
                self._disguise.draw(fresh.numpy(), number, seed=self._start_seed)
                self._disguise.start_steps(number)
                drawn = self._disguise.show(drawn, lanes)
            observation = torch.from_numpy(drawn)
            self._observation = self._observation.index_copy(0, started, observation)
            check_finite([(keys.OBSERVATION, self._observation)])
            self._steps = self._steps.index_fill(0, started, 0)
            self._to_go = self.horizon - int(self._steps.max())
        return self.row()

    def _draw_lengths(self, lanes: Tensor, *, anew: bool) -> None:
        """Draws the lengths of the trials that start in environments ``lanes`` ``[n]``; ``anew``: all K are left."""
        k, shortest = self.episodes_per_trial, self._shortest_trial
        drawn = np.random.default_rng([self._start_seed, self._resets, 3]).random(len(self._steps))
        for lane in lanes.tolist():
            left = k if anew or not self._left[lane] else int(self._left[lane])
            allowed = [n for n in range(shortest, left + 1) if n == left or left - n >= shortest]
            self._counter.length[lane] = allowed[int(drawn[lane] * len(allowed))]
            self._left[lane] = left - self._counter.length[lane]

    def _draw_starts(self) -> IntArray:
        """A random number for each environment's next start [N], determined by the seed and the number of resets."""
        rng = np.random.default_rng([self._start_seed, self._resets])
        self._resets += 1
        draws: IntArray = self._share.of(rng.integers(2**31, size=self._share.total))
        return draws

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if "_step" in tensordict.keys():
            raise RuntimeError("TrialEnv steps all environments together; use rollout(..., break_when_any_done=False).")
        step = self.advance(tensordict.get(keys.ACTION).detach())
        result = self.row().set(keys.REWARD, step.reward)
        return result if step.success is None else result.set(keys.SUCCESS, step.success)

    def advance(self, action: Tensor) -> Step:
        """Steps all environments with ``action`` ``[N, a]``: like `step`, but with plain tensors.

        If an episode has ended, continue with ``maybe_reset(row())``.

        Raises:
            NonFiniteError, WorkerFault: as `step` does.
        """
        check_finite([(keys.ACTION, action)])  # from the policy; stop it before it reaches the simulators
        action = torch.clamp(action, self._low, self._high)
        observation, reward, success = (torch.from_numpy(x) for x in self._step_lanes(action.numpy()))
        check_finite([(keys.OBSERVATION, observation), (keys.REWARD, reward)])
        reward, solved = reward[:, None], success[:, None] if self._says_success else None
        self._observation, self._steps, self._to_go = observation, self._steps + 1, self._to_go - 1
        self._counter.keep(observation, action, reward)
        return Step(observation, action, reward, solved, self._counter.episode, self._pair, self._to_go <= 0)

    def _step_lanes(self, action: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
        if (disguise := self._disguise) is None:
            return self._lanes.step(action)
        observation, reward, success = self._lanes.step(disguise.act(action))
        return disguise.show(observation), disguise.pay(reward), success

    def row(self) -> TensorDictBase:
        """The environments' present row, after a reset as well as after a step."""
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
        """What determines future deals and starts, for `follow` in a process with other environments of the run."""
        return {"deck": self._deck.state(), "resets": self._resets}

    def follow(self, streams: dict[str, Any]) -> None:
        """Deals and draws from the next full reset on like the process that returned ``streams``."""
        self._deck.load_state(streams["deck"])
        self._pending, self._resets = None, streams["resets"]

    def checkpoint_state(self) -> dict[str, Any]:
        """State for continuing at a trial boundary: plain ints, lists, strings and tensors.

        If all environments are at a trial's first step, as after a collector's batch, the dealt (task, goal) pairs are
        saved, and the first full reset after loading deals them again. Raises RuntimeError in the middle of a trial,
        because simulators are not saved.
        """
        counter, pending = self._counter, self._pending
        whole = counter.length[:, 0] + self._left == self.episodes_per_trial  # not within K episodes that are split
        dealt = bool(counter.trial_init.all() and whole.all())
        ended = bool(((counter.episode + 1 == counter.length) & (self._steps >= self.horizon)).all())
        unstarted = bool((counter.episode < 0).all())
        resets = self._resets
        if pending is None and dealt:
            resets -= 1  # the start is repeated, like the deal
            pending = [(task, goal) for task, goal in self._pair.tolist()]
        elif pending is None and not (ended or unstarted):
            raise RuntimeError(
                f"Checkpoints are possible at trial boundaries only; environments are at episode "
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
        """Restores what :meth:`checkpoint_state` returned, at the next full reset; ValueError if it does not fit."""
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
            raise ValueError(f"The saved (task, goal) pairs, {pending[:3]} and so on, do not exist here.")
        self._deck.load_state(state["deck"])
        self._pending = pending
        self._resets = int(state["resets"])
        self._counter.observation = final["observation"].clone()
        self._counter.action = final["action"].clone()
        self._counter.reward = final["reward"].clone()

    @property
    def divergences(self) -> int:
        """How often MuJoCo has reset a diverging simulator so far, in all environments together."""
        return self._lanes.divergences

    @property
    def worker_restarts(self) -> int:
        """How often failed worker processes have been replaced so far."""
        return self._lanes.restarts if isinstance(self._lanes, WorkerLanes) else 0

    def render_lane(self, lane: int, *, size: int = 256) -> Picture:
        """A picture of one environment, uint8 [size, size, 3]; the environment does not change.

        Raises:
            ValueError: if ``size`` is below 1, or the environment does not exist or runs in a worker process.
            RenderingError: if it needs OpenGL (Meta-World) and no backend works.
        """
        check_positive(size=size)
        if not 0 <= lane < len(self._steps):
            raise ValueError(f"lane must be from 0 to {len(self._steps) - 1}, received {lane}.")
        return self._lanes.render(lane, size=size)

    def close(self, **kwargs: Any) -> None:
        """Closes the simulators, and worker processes if there are any."""
        self._lanes.close()
        super().close(**kwargs)
