"""Checks of environments, specs and steps before this package uses them; every error names the fix."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import Bounded, Composite, MultiOneHot, OneHot, TensorSpec, Unbounded
from torchrl.envs import AutoResetEnv, AutoResetTransform, Compose, EnvBase, TransformedEnv

from htrmrl_torchrl import keys

_STEP_KEYS: tuple[NestedKey, ...] = (
    keys.OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.IS_INIT, keys.TRIAL_INIT,
)  # fmt: skip
_FINAL_KEYS: tuple[NestedKey, ...] = (keys.FINAL_OBSERVATION, keys.FINAL_ACTION, keys.FINAL_REWARD)


class MismatchError(ValueError):
    """Environment, specs and agent do not fit together. The message is one sentence that names the fix."""


def check_base(env: EnvBase) -> None:
    """Raise `MismatchError` for an environment that `TrialTransform` cannot divide into trials.

    It needs one observation vector, one action vector, one reward and one ``done``, and must leave resets to TorchRL.
    """
    names = list(env.observation_spec.keys(True, True))
    if keys.OBSERVATION not in env.observation_spec.keys():
        rename = f"RenameTransform(in_keys={names[:1]}, out_keys=['observation'])"
        join = f"CatTensors(in_keys={names}, out_key='observation')"
        raise MismatchError(
            f"TrialTransform needs the key 'observation', and this environment has {names}; put "
            f"{rename if len(names) < 2 else join} before it."
        )
    if list(env.action_keys) != [keys.ACTION]:
        raise MismatchError(
            f"TrialTransform needs one action under 'action', received {env.action_keys}; put RenameTransform(in_keys="
            f"[], out_keys=[], in_keys_inv={list(env.action_keys)[:1]}, out_keys_inv=['action']) before it."
        )
    if list(env.reset_keys) != ["_reset"] or list(env.reward_keys) != [keys.REWARD]:
        raise MismatchError(
            f"TrialTransform needs one 'done' and one 'reward' per environment, received {env.done_keys} and "
            f"{env.reward_keys}; multi-agent environments are not supported."
        )
    check_observation(env.observation_spec[keys.OBSERVATION], lanes=env.batch_size)
    check_action(env.action_spec, lanes=env.batch_size, one_hot=True)
    reward = _of_a_lane(env.output_spec["full_reward_spec", keys.REWARD], env.batch_size)
    if reward != [1]:
        raise MismatchError(
            f"The reward has shape {reward} but must be [1]: put LineariseRewards(in_keys=['reward'], "
            "out_keys=['reward'], weights=[...]) before TrialTransform."
        )
    if _resets_itself(env):
        raise MismatchError(
            "The environment resets itself after an episode's end and TrialTransform has to see every reset: build it "
            "with auto_reset=False and native_autoreset=False."
        )


def check_trials(env: EnvBase) -> None:
    """Raise `MismatchError` if an environment writes ``trial_init`` but not all entries that a memory reads."""
    spec = env.observation_spec
    missing = [key for key in (*_STEP_KEYS, *_FINAL_KEYS) if key not in spec.keys(True)]
    if missing:
        raise MismatchError(
            f"The environment writes 'trial_init' but not {missing}; write them too (keys.py says what they are), or "
            "leave 'trial_init' out and have a TrialTransform write all of them."
        )
    check_observation(spec[keys.OBSERVATION], lanes=env.batch_size)
    check_action(env.action_spec, lanes=env.batch_size, one_hot=True)
    observation, action = ([*_of_a_lane(s, env.batch_size)] for s in (spec[keys.OBSERVATION], env.action_spec))
    shapes: dict[NestedKey, list[int]] = {
        keys.PREV_ACTION: action, keys.PREV_REWARD: [1], keys.IS_INIT: [1], keys.TRIAL_INIT: [1],
        keys.FINAL_OBSERVATION: observation, keys.FINAL_ACTION: action, keys.FINAL_REWARD: [1],
    }  # fmt: skip
    for key, shape in shapes.items():
        received = _of_a_lane(spec[key], env.batch_size)
        if received != shape:
            raise MismatchError(f"The environment's {key!r} has shape {received} but must be {shape}; reshape it.")
    for key in (keys.IS_INIT, keys.TRIAL_INIT):
        if spec[key].dtype is not torch.bool:
            raise MismatchError(f"The environment's {key!r} is {spec[key].dtype} but must be torch.bool; cast it.")


def check_observation(spec: TensorSpec, *, lanes: Sequence[int]) -> None:
    """Raise `MismatchError` unless observations are one vector of real numbers per environment."""
    if isinstance(spec, Composite):
        parts = [(keys.OBSERVATION, *_as_tuple(key)) for key in spec.keys(True, True)]
        names = ["_".join(part) for part in parts]
        raise MismatchError(
            f"'observation' has {len(parts)} entries but must be one vector: put RenameTransform(in_keys={parts}, "
            f"out_keys={names}) and CatTensors(in_keys={names}, out_key='observation') before TrialTransform."
        )
    if spec.dtype is None:
        raise MismatchError(
            f"'observation' is {type(spec).__name__} but must be a vector of numbers; encode it as one in the "
            "environment."
        )
    shape = _of_a_lane(spec, lanes)
    if len(shape) != 1 or not shape[0]:
        fix = (
            f"FlattenObservation(first_dim={-len(shape)}, last_dim=-1, in_keys=['observation'])"
            if len(shape) > 1
            else "UnsqueezeTransform(dim=-1, in_keys=['observation']), or for a category a one-hot encoding,"
        )
        raise MismatchError(
            f"'observation' has shape {shape} but must be a vector [o]: put {fix} before TrialTransform."
        )


def check_action(spec: TensorSpec, *, lanes: Sequence[int] = (), one_hot: bool = False) -> None:
    """Raise `MismatchError` unless actions are one vector of floats per environment, bounded or not.

    The batch axes ``lanes`` of ``spec`` are left out. With ``one_hot`` a one-hot vector is accepted too, for your
    own actor.
    """
    is_one_hot = isinstance(spec, OneHot) and not isinstance(spec, MultiOneHot)
    is_float = isinstance(spec, Bounded | Unbounded) and spec.dtype.is_floating_point
    if not is_float and not (one_hot and is_one_hot):
        needs = (
            "TrialTransform needs a vector of floats, or one-hot vectors (GymEnv's default for a discrete space) with "
            "an actor of your own: choose a continuous environment, or encode them so"
            if one_hot
            else "the actor is a Gaussian over vectors of floats: choose a continuous environment, or put an actor of "
            "your own behind memory and encoder"
        )
        raise MismatchError(f"Actions are discrete ({type(spec).__name__}, {spec.dtype}), and {needs}.")
    shape = _of_a_lane(spec, lanes)
    if len(shape) != 1:
        fix = (
            f"FlattenAction(first_dim={-len(shape)}, last_dim=-1)"
            if shape
            else "UnsqueezeTransform(dim=-1, in_keys=[], out_keys=[], in_keys_inv=['action'], out_keys_inv=['action'])"
        )
        raise MismatchError(f"Actions have shape {shape} but must be vectors [a]: put {fix} before TrialTransform.")
    if isinstance(spec, Bounded):
        low, high = (bound.expand(spec.shape).reshape(-1, *shape) for bound in (spec.space.low, spec.space.high))
        wrong = (~(low <= high)).any(-1).nonzero().flatten().tolist()
        if wrong:
            raise MismatchError(
                f"Actions have bounds from {low[wrong[0]].tolist()} to {high[wrong[0]].tolist()}, but each lower bound "
                "must be a number of at most the upper one; give the action spec such bounds."
            )


def check_step(step: TensorDictBase, *, encoders: Sequence[Any] = ()) -> None:
    """Raise `MismatchError` if a memory's first step ``[*batch]`` lacks entries or does not fit its ``encoders``."""
    missing = [key for key in _STEP_KEYS if key not in step.keys(True)]
    if keys.OBSERVATION in missing:
        raise MismatchError(
            f"The memory reads 'observation' and the environment gives {sorted(map(str, step.keys()))}: append "
            "RenameTransform(in_keys=[...], out_keys=['observation']) and then a TrialTransform to it."
        )
    if missing:
        raise MismatchError(
            f"The environment gives no {', '.join(map(repr, missing))}: append a TrialTransform, "
            "TransformedEnv(env, TrialTransform(episodes_per_trial=...))."
        )
    batch = list(step.batch_size)
    for key in (keys.PREV_REWARD, keys.IS_INIT, keys.TRIAL_INIT):
        if list(step.get(key).shape) != [*batch, 1]:
            raise MismatchError(f"{key!r} has shape {list(step.get(key).shape)} but must be {[*batch, 1]}; reshape it.")
    for key, argument in ((keys.OBSERVATION, "observation_dim"), (keys.PREV_ACTION, "action_dim")):
        shape = list(step.get(key).shape)
        if len(shape) != len(batch) + 1:
            raise MismatchError(f"{key!r} has shape {shape} but must be {batch} and one more axis; flatten the rest.")
        for encoder in encoders:
            if shape[-1] != getattr(encoder, argument):
                raise MismatchError(
                    f"{key!r} has size {shape[-1]} and the encoder was built for {getattr(encoder, argument)}; build "
                    f"it with {argument}={shape[-1]}."
                )


def check_order(transforms: Iterable[Any]) -> None:
    """Raise `MismatchError` for ``transforms`` after a `TrialTransform` that change what the memory reads."""
    told = {keys.OBSERVATION, keys.ACTION, keys.PREV_ACTION, keys.PREV_REWARD, keys.TRIAL_INIT, keys.EPISODE}
    told.add(keys.FINAL_OBSERVATION[0])
    for transform in transforms:
        written = [*transform.out_keys, *transform.in_keys_inv, *transform.out_keys_inv]
        changed = sorted({key if isinstance(key, str) else key[0] for key in written} & told)
        name = type(transform).__name__
        if changed or name in ("FrameSkipTransform", "NoopResetEnv"):
            what = f"changes {' and '.join(map(repr, changed))}" if changed else "plays steps of its own"
            raise MismatchError(
                f"{name} comes after TrialTransform and {what}, which the memory does not see: put it before, "
                f"Compose({name}(...), TrialTransform(...))."
            )


def _of_a_lane(spec: TensorSpec, lanes: Sequence[int]) -> list[int]:
    return list(spec.shape[len(lanes) :])


def _as_tuple(key: NestedKey) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key


def _resets_itself(env: EnvBase) -> bool:
    while True:
        if isinstance(env, AutoResetEnv) or env.__dict__.get("_torchrl_native_autoreset", False):
            return True
        if not isinstance(env, TransformedEnv):
            return False
        transforms = env.transform if isinstance(env.transform, Compose) else [env.transform]
        if any(isinstance(transform, AutoResetTransform) for transform in transforms):
            return True
        env = env.base_env
