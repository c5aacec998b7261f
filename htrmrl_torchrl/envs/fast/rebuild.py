"""The same methods, looking up other globals.

A Python function is code plus the dictionary in which it looks up ``np`` or ``reward_utils``. Running Meta-World's own
code over a dictionary with the lean stand-ins leaves its rewards untouched and every class and module as it was.
"""

import inspect
from types import FunctionType
from typing import Any

import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.utils import reward_utils
from scipy.spatial.transform import Rotation

from htrmrl_torchrl.envs.fast.hand import HandCache
from htrmrl_torchrl.envs.fast.lean import LeanRotation, lean_numpy, lean_rewards, lean_tolerance

_STAND_INS = {
    id(np): lean_numpy,
    id(reward_utils): lean_rewards,
    id(reward_utils.tolerance): lean_tolerance,
    id(Rotation): LeanRotation,
}
_BASE_METHODS = ("_gripper_caging_reward",)  # of SawyerXYZEnv; what else a step needs of it is in simulator.py


def fast_class(official: Any, mixin: Any) -> Any:
    """A subclass of one of Meta-World's classes whose methods are rebuilt; other methods come from ``mixin``."""
    rebuilt = type(official.__name__, (mixin, official), {"_hand_cache": HandCache()})
    scope = _lean_globals(official, rebuilt)
    for owner, names in ((SawyerXYZEnv, _BASE_METHODS), (official, tuple(vars(official)))):
        for name in names:
            member = vars(owner)[name]
            if name != "__init__" and (twin := _rebuild(member, scope, owner)) is not None:
                setattr(rebuilt, name, twin)
    return rebuilt


def _lean_globals(official: type, rebuilt: type) -> dict[str, Any]:
    """What the rebuilt methods look up; a class that calls its own static methods by name finds the rebuilt class."""
    scopes = {**inspect.getmodule(SawyerXYZEnv).__dict__, **inspect.getmodule(official).__dict__}
    return {name: rebuilt if value is official else _STAND_INS.get(id(value), value) for name, value in scopes.items()}


def _rebuild(member: Any, scope: dict[str, Any], owner: type) -> Any:
    """``member`` of a class body over other globals; None for what holds no function."""
    if isinstance(member, staticmethod):
        return staticmethod(_rebuild(member.__func__, scope, owner))
    if isinstance(member, property):
        return property(_rebuild(member.fget, scope, owner))
    if not isinstance(member, FunctionType):
        return None
    checked = inspect.getclosurevars(member).nonlocals.get("func")
    if checked is not None:  # assert_task_is_set(func), of which the task is always set here
        member = checked
    twin = FunctionType(member.__code__, scope, member.__name__, member.__defaults__, member.__closure__)
    twin.__kwdefaults__ = member.__kwdefaults__
    return twin
