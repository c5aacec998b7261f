"""Lanes that fail on demand, for worker processes (which import nothing large here) and whole runs of recipes.

What those of ``env.name=tests.faulty:factory`` do is set by environment variables:

    FAULT=<kind>:<number>   in which step of the process (counted from 1, resets don't count) the fault happens
    FAULT=<kind>:<number>+  in that step and all later ones
    FAULT_FLAG=<path>       a file that exists once the fault has happened: it then does not happen again
    WORKERS=<number>        worker processes that hold the lanes; default: none
    TIMEOUT=<seconds>       in which they must answer
"""

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from htrmrl_torchrl.envs.lanes import LaneKind
from htrmrl_torchrl.envs.toy import BENCHMARK, ToyLanes, build_lanes

HORIZON = 6


class FragileLanes(ToyLanes):
    """Raises in the step whose first action is negative, in the worker that holds that lane."""

    def step(self, actions):
        if (actions[:, 0] < 0).any():
            raise ArithmeticError("the simulator exploded")
        return super().step(actions)


class RestlessLanes(ToyLanes):
    """A step whose last lane has a first action below -2 never ends."""

    divergences = 0

    def step(self, actions):
        self.divergences += 2
        while actions[-1, 0] < -2:
            pass
        return super().step(actions)


def build_toy(num_lanes):
    return ToyLanes(num_lanes=num_lanes, horizon=HORIZON)


def build_fragile(num_lanes):
    return FragileLanes(num_lanes=num_lanes, horizon=HORIZON)


def build_never(num_lanes):
    raise OSError("no assets here")


def build_restless(num_lanes):
    return RestlessLanes(num_lanes=num_lanes, horizon=HORIZON)


def build_endlessly(num_lanes):
    while True:
        pass


class FaultyLanes(ToyLanes):
    """Toy lanes whose last lane (or process) meets a fault at one step of its life."""

    def __init__(self, *, num_lanes, horizon=HORIZON):
        super().__init__(num_lanes=num_lanes, horizon=horizon)
        kind, _, number = os.environ.get("FAULT", "none:0").partition(":")
        self.kind, self.at, self.always, self.count = kind, int(number.rstrip("+")), number.endswith("+"), 0

    def step(self, actions):
        observation, reward, success = super().step(actions)
        self.count += 1
        if (self.count == self.at or (self.always and self.count > self.at)) and self._happens():
            if self.kind in ("nan", "inf"):
                observation[-1, 0] = float(self.kind)
            elif self.kind == "reward":
                reward[-1] = np.nan
            elif self.kind == "huge_reward":
                reward[-1] = 1e25  # finite, but not its square
            elif self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.kind == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif self.kind == "loop":
                while True:
                    pass
            elif self.kind == "raise":
                raise ArithmeticError("the simulator exploded")
        return observation, reward, success

    def _happens(self):
        flag = os.environ.get("FAULT_FLAG")
        if flag is None:
            return True
        first = not Path(flag).exists()
        Path(flag).touch()
        return first


def build(num_lanes):
    return FaultyLanes(num_lanes=num_lanes)


def factory(*, split, num_envs, seed):
    """Trials of four episodes, all in this process or, with WORKERS=n, in n workers."""
    from htrmrl_torchrl.envs import TrialEnv
    from htrmrl_torchrl.envs.deck import TaskDeck
    from htrmrl_torchrl.envs.workers import WorkerLanes

    deck = TaskDeck(num_tasks=1, num_goals=4, num_lanes=num_envs, seed=seed)
    workers = int(os.environ.get("WORKERS", "0"))
    lanes = build(num_envs)
    if workers:
        lanes = WorkerLanes(
            build,
            num_lanes=num_envs,
            num_workers=workers,
            obs_dim=ToyLanes.obs_dim,
            action_low=ToyLanes.action_low,
            action_high=ToyLanes.action_high,
            timeout=float(os.environ.get("TIMEOUT", "60")),
        )
    return TrialEnv(lanes, deck, episodes_per_trial=4, horizon=HORIZON)


class NanInRank1(ToyLanes):
    """Toy lanes of which those of the second process of a run show a NaN in the 30th step of each environment."""

    def __init__(self, *, num_lanes, horizon):
        super().__init__(num_lanes=num_lanes, horizon=horizon)
        self.count = 0

    def step(self, actions):
        observation, reward, success = super().step(actions)
        self.count += 1
        if self.count == 30 and os.environ.get("RANK") == "1":
            observation[-1, 0] = np.nan
        return observation, reward, success


def _lanes_with_a_nan(split, horizon, benchmark_seed):
    def build(num_lanes):
        return NanInRank1(num_lanes=num_lanes, horizon=horizon)

    return LaneKind(
        build if split == "train" else partial(build_lanes, horizon),
        ToyLanes.obs_dim,
        ToyLanes.action_low,
        ToyLanes.action_high,
    )


NAN_IN_RANK_1 = replace(BENCHMARK, name="tests.faulty:NAN_IN_RANK_1", lanes=_lanes_with_a_nan)
