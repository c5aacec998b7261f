"""Pictures of the real simulator, which does not notice."""

import mujoco
import numpy as np
import pytest

from htrmrl_torchrl.envs import make_env
from htrmrl_torchrl.envs.benchmarks import draw_goals
from htrmrl_torchrl.envs.metaworld import MetaWorldLanes
from tests.helpers import skip_without_opengl

BENCHMARK = "custom:[reach,drawer-close,peg-unplug-side]/[push]"
TASKS = ["drawer-close-v3", "peg-unplug-side-v3", "reach-v3"]
SIZE = 64


@pytest.fixture
def opengl():
    skip_without_opengl()


def make_lanes(num_lanes):
    return MetaWorldLanes(TASKS, draw_goals(BENCHMARK, "train", 0), num_lanes=num_lanes)


def start(lanes, tasks, goals):
    return lanes.reset(np.arange(len(tasks)), np.array(tasks), np.array(goals))


def full_state(lanes):
    """Everything MuJoCo integrates, and the positions that observations, rewards and Meta-World's targets read."""
    parts = []
    for simulator in lanes._simulators:
        state = np.empty(mujoco.mj_stateSize(simulator.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(simulator.model, simulator.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        parts += [state, simulator.data.site_xpos.ravel(), simulator.data.xpos.ravel(), simulator.data.efc_force]
    return np.concatenate(parts)


def play(lanes, look):
    """Three episodes in which lanes change their tasks and simulators; hands push down, so that they touch things."""
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 12, 2, 4)).astype(np.float32)
    actions[:, 4:, :, 2] = -1.0
    seen = []
    for tasks, episode in zip([(0, 1), (1, 0), (2, 0)], actions, strict=True):
        seen.append(start(lanes, tasks, (3, 4)).ravel())
        for step, action in enumerate(episode):
            if step % 3 == 0:
                look(lanes)
            observation, reward, success = lanes.step(action)
            seen += [observation.ravel(), reward, success, full_state(lanes)]
    return np.concatenate(seen)


@pytest.mark.slow
def test_the_simulator_does_not_notice_that_it_is_drawn(opengl):
    pictures = []

    def look(lanes):
        before = full_state(lanes)
        pictures.extend(lanes.render(lane, size=SIZE) for lane in range(2))
        np.testing.assert_array_equal(full_state(lanes), before)

    looked_at, alone = make_lanes(2), make_lanes(2)
    np.testing.assert_array_equal(play(looked_at, look), play(alone, lambda lanes: None))
    assert len(pictures) == 24 and len(np.unique(np.stack(pictures), axis=0)) > 20  # they do show something
    looked_at.close()
    alone.close()


def test_a_picture_shows_lane_hand_and_target(opengl):
    lanes = make_lanes(2)
    start(lanes, (2, 2), (0, 1))
    first, other = (lanes.render(lane, size=SIZE) for lane in range(2))
    assert first.shape == (SIZE, SIZE, 3) and first.dtype == np.uint8 and first.flags.writeable
    difference = (first != other).any(-1)
    assert 0 < difference.mean() < 0.2  # before any step: only the target and the puck are elsewhere
    np.testing.assert_array_equal(lanes.render(0, size=SIZE), first)  # looking twice shows the same
    for _ in range(8):
        lanes.step(np.array([[1, 0, 0, 0], [0, 0, 0, 0]], dtype=np.float32))
    moved = lanes.render(0, size=SIZE)
    assert (moved != first).any(-1).mean() > 0.03  # the arm
    assert np.allclose(moved[:4, -4:], first[:4, -4:], atol=2)  # the background: the camera is fixed
    lanes.close()


def test_the_size_can_change_and_lanes_can_be_used_after_closing(opengl):
    lanes = make_lanes(1)
    for size in (48, 500, 48):
        start(lanes, (2,), (0,))
        assert lanes.render(0, size=size).shape == (size, size, 3)
    lanes.close()
    with pytest.raises(RuntimeError, match="Environment 0 has no simulator yet; reset it"):
        lanes.render(0, size=48)
    start(lanes, (0,), (0,))
    assert lanes.render(0, size=48).any()
    lanes.close()
    lanes.close()


@pytest.mark.slow
def test_all_kinds_of_tasks_can_be_drawn(opengl):
    """Targets are sites of different names, or none."""
    env = make_env("ML45", num_envs=15, pairs=[(task, 0) for task in range(0, 45, 3)])
    env.reset()
    assert len({env.render_lane(lane, size=SIZE).tobytes() for lane in range(15)}) == 15
    env.close()
