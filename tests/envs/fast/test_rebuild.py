"""Rebuilt methods run the official code over other globals."""

from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.utils import reward_utils

from htrmrl_torchrl.envs.fast.lean import LeanRotation, lean_numpy, lean_rewards, lean_tolerance
from htrmrl_torchrl.envs.fast.rebuild import fast_class


class Mixin(SawyerXYZEnv):
    """Overrides nothing."""


def test_the_code_is_the_same_and_the_globals_are_not():
    official = ALL_V3_ENVIRONMENTS["push-v3"]
    rebuilt = fast_class(official, Mixin)
    assert rebuilt.compute_reward.__code__ is official.compute_reward.__code__
    scope = rebuilt.compute_reward.__globals__
    assert scope["np"] is lean_numpy and scope["Rotation"] is LeanRotation and scope["reward_utils"] is lean_rewards
    assert official.compute_reward.__globals__["reward_utils"] is reward_utils
    assert rebuilt.__init__ is official.__init__  # its zero-argument super() and its spaces stay as they are


def test_the_check_that_a_task_is_set_is_taken_off():
    official = ALL_V3_ENVIRONMENTS["push-v3"]
    assert official.evaluate_state.__name__ == "inner"
    assert fast_class(official, Mixin).evaluate_state.__name__ == "evaluate_state"


def test_a_class_that_names_itself_finds_the_rebuilt_one():
    official = ALL_V3_ENVIRONMENTS["assembly-v3"]
    rebuilt = fast_class(official, Mixin)
    scope = rebuilt.compute_reward.__globals__
    assert scope[official.__name__] is rebuilt and scope["tolerance"] is lean_tolerance
    assert rebuilt._reward_pos.__globals__ is scope and isinstance(vars(rebuilt)["_reward_pos"], staticmethod)


def test_an_own_caging_reward_is_kept():
    official = ALL_V3_ENVIRONMENTS["sweep-v3"]
    assert fast_class(official, Mixin)._gripper_caging_reward.__code__ is official._gripper_caging_reward.__code__
