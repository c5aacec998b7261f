"""Environments as their users have them: what works with this package, and in which sentence the rest is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text
from torchrl.data import Bounded, Categorical, Unbounded
from torchrl.envs import (
    ActionScaling,
    CatTensors,
    Compose,
    DoubleToFloat,
    EnvBase,
    FlattenAction,
    FlattenObservation,
    FrameSkipTransform,
    GymWrapper,
    InitTracker,
    LineariseRewards,
    ObservationNorm,
    RenameTransform,
    RewardScaling,
    RewardSum,
    SerialEnv,
    StepCounter,
    Transform,
    TransformedEnv,
    VecNormV2,
)

from htrmrl_torchrl import TrialTransform

STEPS = 3  # of an episode
TWO, ONE = Box(-1, 1, (2,)), Box(-1, 1, (1,))


class Noted(gym.Env):
    """Episodes of ``steps`` steps; observations are drawn from their space, and `executed` is the last action."""

    def __init__(self, observations=TWO, actions=ONE, *, reward=None, rewards=None, steps=STEPS) -> None:
        self.observation_space, self.action_space = observations, actions
        if rewards is not None:
            self.reward_space = rewards
        self.reward = (lambda action: float(np.sum(action))) if reward is None else reward
        self.steps, self.t = steps, 0
        self.observation_space.seed(0)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t, self.executed = self.t + 1, action
        return self.observation_space.sample(), self.reward(action), False, self.t >= self.steps, {}


def noted(*spaces: Any, **options: Any) -> Callable[[], EnvBase]:
    return lambda: GymWrapper(Noted(*spaces, **options))


def then(make: Callable[[], EnvBase], *transforms: Callable[[], Transform]) -> Callable[[], EnvBase]:
    """With transforms, before there are trials."""
    return lambda: TransformedEnv(make(), Compose(*(transform() for transform in transforms)))


def with_spec(**specs: Any) -> Callable[[], EnvBase]:
    """With specs of another kind than gymnasium's spaces give."""

    def make() -> EnvBase:
        env = GymWrapper(Noted())
        for name, spec in specs.items():
            setattr(env, name, spec() if callable(spec) else spec)
        return env

    return make


def in_trials(*after: Callable[[], Transform], before: Callable[[], Transform] | None = None):
    """An environment that the user has put into trials, with transforms after that."""
    chain = [] if before is None else [before()]
    return lambda make: TransformedEnv(
        make(), Compose(*chain, TrialTransform(episodes_per_trial=2), *(transform() for transform in after))
    )


@dataclass
class Row:
    """An input: an environment, and how it comes into trials where not by a TrialTransform alone."""

    make: Callable[[], EnvBase]
    trials: Callable[[Callable[[], EnvBase]], EnvBase] | None = None

    def in_trials(self) -> EnvBase:
        if self.trials is not None:
            return self.trials(self.make)
        return TransformedEnv(self.make(), TrialTransform(episodes_per_trial=2))


def scaled() -> Transform:
    return ObservationNorm(loc=1.0, scale=0.5, in_keys=["observation"], standard_normal=True)


def two_at_once() -> EnvBase:
    return SerialEnv(2, noted())


WORKS: dict[str, Row] = {
    "plain": Row(noted()),
    "float64 observations": Row(noted(Box(-1, 1, (2,), np.float64))),
    "float16 observations": Row(noted(Box(-1, 1, (2,), np.float16))),
    "uint8 observations": Row(noted(Box(0, 255, (2,), np.uint8))),
    "int64 observations": Row(noted(Box(-9, 9, (2,), np.int64))),
    "flags as observations": Row(noted(MultiBinary(3))),
    "a category, one-hot": Row(noted(Discrete(4))),
    "observations of one constant number": Row(noted(Box(1, 1, (1,)))),
    "many observations": Row(noted(Box(-1, 1, (200,)))),
    "float64 actions": Row(noted(TWO, Box(-1, 1, (1,), np.float64))),
    "unbounded actions": Row(noted(TWO, Box(-np.inf, np.inf, (2,)))),
    "bounds on one side": Row(noted(TWO, Box(np.array([0, -np.inf], np.float32), np.array([np.inf, 5], np.float32)))),
    "asymmetric bounds": Row(noted(TWO, Box(np.array([0, -7], np.float32), np.array([10, -5], np.float32)))),
    "bounds without room": Row(noted(TWO, Box(1, 1, (1,)))),
    "no number for an action dimension": Row(noted(Box(-1, 1, (1,)), Box(-1, 1, (6,)))),
    "whole-number rewards": Row(noted(reward=lambda action: 1)),
    "float64 rewards": Row(noted(reward=lambda action: np.float64(0.3))),
    "an image, flattened": Row(
        then(noted(Box(0, 255, (3, 2, 2), np.uint8)), lambda: FlattenObservation(-3, -1, in_keys=["observation"]))
    ),
    "entries, joined": Row(
        then(noted(Dict(a=TWO, b=ONE)), lambda: CatTensors(in_keys=["a", "b"], out_key="observation"))
    ),
    "matrix actions, flattened": Row(then(noted(TWO, Box(-1, 1, (2, 2))), lambda: FlattenAction(-2, -1))),
    "scaled actions": Row(then(noted(TWO, Box(-4, 4, (1,))), lambda: ActionScaling(loc=0.0, scale=4.0))),
    "two rewards, combined": Row(
        then(
            noted(reward=lambda action: np.ones(2, np.float32), rewards=Box(-1, 1, (2,))),
            lambda: LineariseRewards(in_keys=["reward"], out_keys=["reward"], weights=[0.5, 0.5]),
        )
    ),
    "transforms before": Row(then(noted(), scaled, StepCounter, DoubleToFloat)),
    "InitTracker before": Row(then(noted(), InitTracker)),
    "InitTracker after": Row(noted(), trials=in_trials(InitTracker)),
    "what changes nothing told, after": Row(noted(), trials=in_trials(RewardSum, StepCounter)),
    "rewards scaled for learning, after": Row(noted(), trials=in_trials(lambda: RewardScaling(loc=0.0, scale=0.1))),
    "episodes of one step": Row(noted(steps=1)),
    "gymnasium's wrapper Autoreset": Row(lambda: GymWrapper(gym.wrappers.Autoreset(Noted()))),
    "several lanes": Row(two_at_once),
}

REFUSED: dict[str, Row] = {
    "an image": Row(noted(Box(0, 255, (3, 2, 2), np.uint8))),
    "a matrix": Row(noted(Box(-1, 1, (2, 2)))),
    "entries": Row(noted(Dict(a=TWO, b=ONE))),
    "an entry of another name": Row(then(noted(), lambda: RenameTransform(["observation"], ["state"]))),
    "nested entries": Row(noted(Dict(observation=Dict(a=TWO, b=ONE)))),
    "text": Row(noted(Text(5))),
    "a category, as a number": Row(lambda: GymWrapper(Noted(Discrete(4)), categorical_action_encoding=True)),
    "one-hot actions": Row(noted(TWO, Discrete(3))),
    "categorical actions": Row(with_spec(action_spec=lambda: Categorical(3))),
    "whole-number actions": Row(with_spec(action_spec=lambda: Bounded(-2, 2, (1,), dtype=torch.int64))),
    "several categories": Row(noted(TWO, MultiDiscrete([2, 3]))),
    "flags as actions": Row(noted(TWO, MultiBinary(2))),
    "unbounded whole-number actions": Row(with_spec(action_spec=lambda: Unbounded((1,), dtype=torch.int64))),
    "matrix actions": Row(noted(TWO, Box(-1, 1, (2, 2)))),
    "scalar actions": Row(with_spec(action_spec=lambda: Bounded(-1, 1, ()))),
    "bounds that are no numbers": Row(
        with_spec(action_spec=lambda: Bounded(torch.tensor([float("nan")]), torch.ones(1)))
    ),
    "crossed bounds": Row(with_spec(action_spec=lambda: Bounded(torch.ones(1), -torch.ones(1)))),
    "actions of another name": Row(
        then(noted(), lambda: RenameTransform([], [], in_keys_inv=["action"], out_keys_inv=["force"]))
    ),
    "two rewards": Row(noted(reward=lambda action: np.ones(2, np.float32), rewards=Box(-1, 1, (2,)))),
    "an environment that resets itself": Row(lambda: GymWrapper(Noted(), auto_reset=True), trials=in_trials()),
    "ObservationNorm after": Row(noted(), trials=in_trials(scaled)),
    "VecNorm after": Row(noted(), trials=in_trials(lambda: VecNormV2(in_keys=["observation"]))),
    "ActionScaling after": Row(
        noted(TWO, Box(-4, 4, (1,))), trials=in_trials(lambda: ActionScaling(loc=0.0, scale=4.0))
    ),
    "frames skipped after": Row(noted(), trials=in_trials(lambda: FrameSkipTransform(2))),
    "trials in trials": Row(noted(), trials=in_trials(lambda: TrialTransform(episodes_per_trial=2))),
    "a trial's first step alone": Row(then(noted(), lambda: InitTracker(init_key="trial_init"))),
}

# What is said, with every encoder.
SAID: dict[str, str] = {
    "an image": (
        "'observation' has shape [3, 2, 2] but must be a vector [o]: put FlattenObservation(first_dim=-3, "
        "last_dim=-1, in_keys=['observation']) before TrialTransform."
    ),
    "a matrix": (
        "'observation' has shape [2, 2] but must be a vector [o]: put FlattenObservation(first_dim=-2, "
        "last_dim=-1, in_keys=['observation']) before TrialTransform."
    ),
    "entries": (
        "TrialTransform needs the key 'observation', and this environment has ['a', 'b']; put "
        "CatTensors(in_keys=['a', 'b'], out_key='observation') before it."
    ),
    "an entry of another name": (
        "TrialTransform needs the key 'observation', and this environment has ['state']; put "
        "RenameTransform(in_keys=['state'], out_keys=['observation']) before it."
    ),
    "nested entries": (
        "'observation' has 2 entries but must be one vector: put RenameTransform(in_keys=[('observation', "
        "'a'), ('observation', 'b')], out_keys=['observation_a', 'observation_b']) and "
        "CatTensors(in_keys=['observation_a', 'observation_b'], out_key='observation') before TrialTransform."
    ),
    "text": ("'observation' is NonTensor but must be a vector of numbers; encode it as one in the environment."),
    "a category, as a number": (
        "'observation' has shape [] but must be a vector [o]: put UnsqueezeTransform(dim=-1, "
        "in_keys=['observation']), or for a category a one-hot encoding, before TrialTransform."
    ),
    "one-hot actions": (
        "Actions are discrete (OneHot, torch.int64), and the actor is a Gaussian over vectors of floats: "
        "choose a continuous environment, or put an actor of your own behind memory and encoder."
    ),
    "categorical actions": (
        "Actions are discrete (Categorical, torch.int64), and TrialTransform needs a vector of floats, or "
        "one-hot vectors (GymEnv's default for a discrete space) with an actor of your own: choose a "
        "continuous environment, or encode them so."
    ),
    "whole-number actions": (
        "Actions are discrete (BoundedDiscrete, torch.int64), and TrialTransform needs a vector of floats, "
        "or one-hot vectors (GymEnv's default for a discrete space) with an actor of your own: choose a "
        "continuous environment, or encode them so."
    ),
    "several categories": (
        "Actions are discrete (MultiOneHot, torch.int64), and TrialTransform needs a vector of floats, or "
        "one-hot vectors (GymEnv's default for a discrete space) with an actor of your own: choose a "
        "continuous environment, or encode them so."
    ),
    "flags as actions": (
        "Actions are discrete (Binary, torch.int8), and TrialTransform needs a vector of floats, or one-hot "
        "vectors (GymEnv's default for a discrete space) with an actor of your own: choose a continuous "
        "environment, or encode them so."
    ),
    "unbounded whole-number actions": (
        "Actions are discrete (UnboundedDiscrete, torch.int64), and TrialTransform needs a vector of floats, "
        "or one-hot vectors (GymEnv's default for a discrete space) with an actor of your own: choose a "
        "continuous environment, or encode them so."
    ),
    "matrix actions": (
        "Actions have shape [2, 2] but must be vectors [a]: put FlattenAction(first_dim=-2, last_dim=-1) "
        "before TrialTransform."
    ),
    "scalar actions": (
        "Actions have shape [] but must be vectors [a]: put UnsqueezeTransform(dim=-1, in_keys=[], "
        "out_keys=[], in_keys_inv=['action'], out_keys_inv=['action']) before TrialTransform."
    ),
    "bounds that are no numbers": (
        "Actions have bounds from [nan] to [1.0], but each lower bound must be a number of at most the upper "
        "one; give the action spec such bounds."
    ),
    "crossed bounds": (
        "Actions have bounds from [1.0] to [-1.0], but each lower bound must be a number of at most the "
        "upper one; give the action spec such bounds."
    ),
    "actions of another name": (
        "TrialTransform needs one action under 'action', received ['force']; put RenameTransform(in_keys=[], "
        "out_keys=[], in_keys_inv=['force'], out_keys_inv=['action']) before it."
    ),
    "two rewards": (
        "The reward has shape [2] but must be [1]: put LineariseRewards(in_keys=['reward'], "
        "out_keys=['reward'], weights=[...]) before TrialTransform."
    ),
    "an environment that resets itself": (
        "The environment resets itself after an episode's end and TrialTransform has to see every reset: "
        "build it with auto_reset=False and native_autoreset=False."
    ),
    "ObservationNorm after": (
        "ObservationNorm comes after TrialTransform and changes 'observation', which the memory does not "
        "see: put it before, Compose(ObservationNorm(...), TrialTransform(...))."
    ),
    "VecNorm after": (
        "VecNormV2 comes after TrialTransform and changes 'observation', which the memory does not see: "
        "put it before, Compose(VecNormV2(...), TrialTransform(...))."
    ),
    "ActionScaling after": (
        "ActionScaling comes after TrialTransform and changes 'action', which the memory does not see: "
        "put it before, Compose(ActionScaling(...), TrialTransform(...))."
    ),
    "frames skipped after": (
        "FrameSkipTransform comes after TrialTransform and plays steps of its own, which the memory "
        "does not see: put it before, Compose(FrameSkipTransform(...), TrialTransform(...))."
    ),
    "trials in trials": (
        "The environment already writes ['episode', 'final', 'prev_action', 'prev_reward', 'trial_init'], as "
        "TrialTransform does; remove one of the two."
    ),
    "a trial's first step alone": (
        "The environment already writes ['trial_init'], as TrialTransform does; remove one of the two."
    ),
}
