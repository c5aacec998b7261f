"""The caging reward against the official method, on the same simulator."""

import numpy as np
import pytest
from metaworld.sawyer_xyz_env import SawyerXYZEnv

from htrmrl_torchrl.envs.fast import fast_simulator
from htrmrl_torchrl.envs.fast.caging import gripper_caging_reward

SHAPE = {"obj_radius": 0.015, "pad_success_thresh": 0.05, "object_reach_radius": 0.01, "xz_thresh": 0.005}


@pytest.fixture(scope="module")
def simulator():
    simulator = fast_simulator("push-v3")
    simulator.set_goal(np.array([0.05, 0.62, 0.02, 0.0, 0.85, 0.02]))
    simulator.reset()
    return simulator


@pytest.mark.parametrize("density", [{}, {"high_density": True}, {"medium_density": True}])
@pytest.mark.parametrize("effort", [1.0, 0.7])
def test_bits_and_types_are_the_official_ones(simulator, density, effort):
    """Objects around the fingers, some of them caged: only then does the float32 command of the gripper count."""
    generator, caged = np.random.default_rng(0), 0
    for distance in (1e-3, 0.02, 0.2):
        for _ in range(300):
            action = generator.uniform(-1.2, 1.2, 4).astype(np.float32)
            position = simulator.tcp_center + generator.normal(size=3) * distance
            arguments = {**SHAPE, **density, "desired_gripper_effort": effort}
            ours = gripper_caging_reward(simulator, action, position, **arguments)
            theirs = SawyerXYZEnv._gripper_caging_reward(simulator, action, position, **arguments)
            assert type(ours) is type(theirs) and ours == theirs
            caged += isinstance(ours, np.float32)
    assert caged > 20


def test_both_densities_are_refused(simulator):
    with pytest.raises(ValueError, match="either"):
        gripper_caging_reward(simulator, np.zeros(4), np.zeros(3), **SHAPE, high_density=True, medium_density=True)
