"""Trials for any TorchRL environment."""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn.functional import one_hot
from torchrl.data import Bounded, Composite, OneHot, TensorSpec
from torchrl.envs import Compose, EnvBase
from torchrl.envs.transforms import Transform

from htrmrl_torchrl import keys
from htrmrl_torchrl.envs.lanes import check_positive
from htrmrl_torchrl.envs.trial import TrialCounter
from htrmrl_torchrl.faults import check_finite
from htrmrl_torchrl.specs import MismatchError, check_base, check_order


class TrialTransform(Transform):
    """Adds ``prev_action``, ``prev_reward``, ``is_init``, ``trial_init``, ``episode`` and ``final`` to an environment.

    For environments that keep their task until a full reset, or have only one task, such as ``GymEnv("Pendulum-v1")``.
    Works with any batch size, ``[]`` included, inside ``SerialEnv``/``ParallelEnv`` and appended to them. A masked
    reset starts an environment's next episode, or its next trial after ``episodes_per_trial``; a full reset starts new
    trials in all environments.

    Bounded actions are clipped for the environment. Of a one-hot action the largest entry counts. ``prev_action`` holds
    the executed action (as float32).

    It comes last: no transform after it may change observations or actions. ``InitTracker``, ``RewardSum`` and the like
    may come before or after it.

    Args:
        episodes_per_trial: K.

    Raises:
        ValueError: if K is below 1.
        MismatchError: (a ValueError) at the first use, if the environment has no flat ``observation`` and ``action``,
            several ``done`` flags or rewards, or resets itself; from a reset, if a later transform changes keys of this
            one.
        RuntimeError: from a step of only some environments (``rollout`` with ``break_when_all_done``).
        NonFiniteError: (a ValueError) if a reset or step gives an observation or reward that is not finite.

    Example:
        >>> from torchrl.envs import GymEnv, TransformedEnv
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), TrialTransform(episodes_per_trial=3))
        >>> env.rollout(3)["is_init"].flatten().tolist()
        [True, False, False]
    """

    def __init__(self, episodes_per_trial: int) -> None:
        check_positive(episodes_per_trial=episodes_per_trial)
        super().__init__()
        self.episodes_per_trial = episodes_per_trial
        self._counter: TrialCounter | None = None
        self._executed: Tensor | None = None

    @property
    def counter(self) -> TrialCounter:
        """Position of each environment in its trial; built at the first use, when the environment is known."""
        if self._counter is None:
            self._counter = _counter_for(self.parent, self.episodes_per_trial)
        return self._counter

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TrialTransform":
        if self._counter is not None:
            self._counter.apply(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-any-return]

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        spec, action = self.parent.action_spec, tensordict.get(keys.ACTION)
        if isinstance(spec, Bounded) and spec.dtype.is_floating_point:
            action = torch.clamp(action, spec.space.low, spec.space.high)
            tensordict.set(keys.ACTION, action)
        elif isinstance(spec, OneHot):
            action = one_hot(action.argmax(-1), spec.shape[-1]).to(spec.dtype)
            tensordict.set(keys.ACTION, action)
        self._executed = action  # in this spec's units; transforms before this one may still rescale or reshape it
        return tensordict

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        if "_step" in tensordict.keys():
            raise RuntimeError("TrialTransform counts whole steps; use rollout(..., break_when_any_done=False).")
        reward = next_tensordict.get(keys.REWARD).reshape(self.counter.reward.shape)
        observation = next_tensordict.get(keys.OBSERVATION)
        self._check(observation=observation, reward=reward)
        assert self._executed is not None
        self.counter.step(observation, self._executed, reward)
        return self.counter.write(next_tensordict)

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        check_order(self._followers())
        mask: Tensor | None = tensordict.get("_reset", None)
        self._check(observation=tensordict_reset.get(keys.OBSERVATION))
        self.counter.reset(None if mask is None else mask.reshape(self.counter.is_init.shape))
        return self.counter.write(tensordict_reset)

    def _followers(self) -> list[Transform]:
        """The transforms that come after this one."""
        container: Any = self.container
        transforms = _flat(container.transform)
        return transforms[next(i for i, transform in enumerate(transforms) if transform is self) + 1 :]

    def _check(self, **tensors: Tensor) -> None:
        """Environments are numbered over all batch axes; one without a batch axis has number 0."""
        lanes = self.counter.batch_size.numel()
        check_finite((name, tensor.reshape(lanes, -1)) for name, tensor in tensors.items())

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        """Adds the specs of the keys written here."""
        if not isinstance(observation_spec, Composite):
            raise MismatchError(f"TrialTransform needs a composite observation spec, received {observation_spec}.")
        added = self.counter.spec()
        taken = set(observation_spec.keys()) & set(added.keys())
        if keys.IS_INIT in taken and observation_spec[keys.IS_INIT] == added[keys.IS_INIT]:
            taken.remove(keys.IS_INIT)  # from an InitTracker, with the same values
        if taken:
            raise MismatchError(
                f"The environment already writes {sorted(taken)}, as TrialTransform does; remove one of the two."
            )
        observation_spec.update(added)
        return observation_spec


def _flat(transform: Transform) -> list[Transform]:
    return [inner for part in transform for inner in _flat(part)] if isinstance(transform, Compose) else [transform]


def _counter_for(env: EnvBase | None, episodes_per_trial: int) -> TrialCounter:
    if env is None:
        raise RuntimeError("TrialTransform needs an environment: TransformedEnv(env, TrialTransform(...)).")
    check_base(env)
    lead = len(env.batch_size)
    observation: Any = env.observation_spec[keys.OBSERVATION]
    return TrialCounter(
        env.batch_size,
        observation_shape=observation.shape[lead:],
        action_shape=env.action_spec.shape[lead:],
        episodes_per_trial=episodes_per_trial,
        device=env.device,
        observation_dtype=observation.dtype,
    )
