"""Meta-World's methods, run with other globals (the dictionary in which a function looks up ``np``)."""

import inspect
import sys
from types import FunctionType
from typing import Any

import numpy as np
from metaworld.utils import reward_utils
from scipy.spatial.transform import Rotation

from htrmrl_torchrl.envs.fast.caging import gripper_caging_reward
from htrmrl_torchrl.envs.fast.hand import HandCache
from htrmrl_torchrl.envs.fast.lean import LeanRotation, lean_numpy, lean_rewards, lean_tolerance

_STAND_INS = {
    id(np): lean_numpy,
    id(reward_utils): lean_rewards,
    id(reward_utils.tolerance): lean_tolerance,
    id(Rotation): LeanRotation,
}


def fast_class(official: Any, mixin: Any) -> Any:
    """A subclass of a Meta-World class: methods of ``mixin`` come first, then rebuilt ones, then inherited ones."""
    shared = {"_hand_cache": HandCache(), "_gripper_caging_reward": gripper_caging_reward}
    rebuilt = type(official.__name__, (mixin, official), shared)
    scope = _lean_globals(official, rebuilt)
    for name, member in vars(official).items():
        if name != "__init__" and name not in vars(mixin) and (twin := _rebuild(member, scope)) is not None:
            setattr(rebuilt, name, twin)
    return rebuilt


def _lean_globals(official: type, rebuilt: type) -> dict[str, Any]:
    """Globals of the rebuilt methods. A class that calls its static methods by its own name gets the rebuilt class."""
    scope = vars(sys.modules[official.__module__])
    return {name: rebuilt if value is official else _STAND_INS.get(id(value), value) for name, value in scope.items()}


def _rebuild(member: Any, scope: dict[str, Any]) -> Any:
    """``member`` of a class body with other globals; None if it holds no function."""
    if isinstance(member, staticmethod):
        return staticmethod(_rebuild(member.__func__, scope))
    if isinstance(member, property):
        return property(_rebuild(member.fget, scope))
    if not isinstance(member, FunctionType):
        return None
    checked = inspect.getclosurevars(member).nonlocals.get("func")
    if checked is not None:  # the decorator assert_task_is_set; here the task is always set
        member = checked
    twin = FunctionType(member.__code__, scope, member.__name__, member.__defaults__, member.__closure__)
    twin.__kwdefaults__ = member.__kwdefaults__
    return twin
