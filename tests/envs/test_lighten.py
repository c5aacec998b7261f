"""The lightened simulator computes the same bits; test_metaworld.py compares whole episodes of all tasks."""

import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import SawyerPickPlaceV3Policy

from htrmrl_torchrl.envs.lighten import lighten


def drawn_simulator(task):
    simulator = ALL_V3_ENVIRONMENTS[task]()
    simulator._freeze_rand_vec, simulator._set_task_called = False, True
    state = np.random.get_state()
    np.random.seed(0)
    simulator.reset()
    np.random.set_state(state)
    simulator._freeze_rand_vec = True
    return simulator


def test_a_grasp_is_noticed_as_before():
    """An expert grasps and lifts: contacts with both pads, which random actions hardly ever make."""
    simulator, reference = drawn_simulator("pick-place-v3"), drawn_simulator("pick-place-v3")
    simulator._partially_observable = reference._partially_observable = False
    lighten(simulator)
    policy, touching = SawyerPickPlaceV3Policy(), []
    observation = reference.reset()[0]
    np.testing.assert_array_equal(simulator.reset()[0], observation)
    for _ in range(120):
        action = policy.get_action(observation).astype(np.float32)
        ours, theirs = simulator.step(action), reference.step(action)
        observation = theirs[0]
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1] == theirs[1] and ours[4] == theirs[4]
        assert simulator.touching_main_object == reference.touching_main_object
        touching.append(bool(reference.touching_main_object))
    assert 0 < sum(touching) < len(touching)  # both answers were compared


def test_only_the_one_simulator_changes():
    touched, other = drawn_simulator("reach-v3"), drawn_simulator("reach-v3")
    lighten(touched)
    assert "touching_object" in vars(touched) and "_get_quat_objects" in vars(touched)
    assert "touching_object" not in vars(other) and "_get_quat_objects" not in vars(other)


@pytest.mark.parametrize("task", ["reach-v3", "push-v3", "coffee-pull-v3", "assembly-v3"])
def test_quaternions_are_the_same_bits(task):
    simulator = drawn_simulator(task)
    before = simulator._get_quat_objects()
    lighten(simulator)
    np.testing.assert_array_equal(simulator._get_quat_objects(), before)
