"""HalfCheetah and Ant against gymnasium's own classes, stepped beside them."""

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.envs import check_env_specs

from htrmrl_torchrl import evaluate, keys, make_env
from htrmrl_torchrl.agent.networks import build_networks
from htrmrl_torchrl.envs import benchmarks, locomotion, task_names
from htrmrl_torchrl.envs.locomotion import LocomotionLanes, draw_goals
from tests.helpers import skip_without_opengl

NAMES = ["HalfCheetah-Dir", "HalfCheetah-Vel", "Ant-Dir"]


def official(name):
    """Gymnasium's environment as it is made by name, and whatever there is to read of its state."""
    if name == "Ant-Dir":
        return gymnasium.make("Ant-v5", include_cfrc_ext_in_observation=False, terminate_when_unhealthy=False).unwrapped
    return gymnasium.make("HalfCheetah-v5").unwrapped


def paper_reward(name, goal, before, data, action, seconds):
    """From the state alone, as the published classes compute it."""
    if name == "Ant-Dir":
        velocity = (data.body("torso").xpos[:2] - before) / seconds
        contact = np.square(np.clip(data.cfrc_ext, -1, 1)).sum()
        healthy = 0.2 <= data.qpos[2] <= 1.0
        return velocity @ goal - 0.5 * np.square(action).sum() - 0.5e-3 * contact + float(healthy)
    velocity = (data.qpos[0] - before) / seconds
    cost = 0.5 * 0.1 * np.square(action).sum()
    return (goal[0] * velocity if name == "HalfCheetah-Dir" else -abs(velocity - goal[0])) - cost


@pytest.mark.parametrize("name", NAMES)
def test_episodes_are_gymnasiums_with_the_published_rewards(name):
    goals = draw_goals(name, "train", 3)
    lanes, theirs = LocomotionLanes(name, goals, num_lanes=2), official(name)
    generator, healthy = np.random.default_rng(0), []
    for goal, draw in ((0, 5), (1, 6)):  # the second episode on used simulators
        start = lanes.reset(np.arange(2), np.zeros(2, np.int64), np.array([1 - goal, goal]), np.array([9, draw]))
        np.testing.assert_array_equal(start[1], theirs.reset(seed=draw)[0].astype(np.float32))
        for _ in range(80):
            actions = generator.uniform(-1, 1, (2, len(lanes.action_low))).astype(np.float32)
            before = theirs.data.body("torso").xpos[:2].copy() if name == "Ant-Dir" else theirs.data.qpos[0]
            expected, *_ = theirs.step(actions[1])
            observation, reward, success = lanes.step(actions)
            np.testing.assert_array_equal(observation[1], expected.astype(np.float32))
            exact = paper_reward(name, goals[goal], before, theirs.data, actions[1], theirs.dt)
            assert abs(reward[1] - exact) <= 1e-5 * max(1, abs(exact))
            assert not success.any()
            healthy.append(name != "Ant-Dir" or bool(theirs.is_healthy))
    assert lanes.divergences == 0 and any(healthy)
    lanes.close()
    lanes.close()


def test_an_ant_out_of_bounds_plays_on_without_its_healthy_reward():
    lanes = LocomotionLanes("Ant-Dir", draw_goals("Ant-Dir", "train", 0), num_lanes=1)
    zero, still = np.zeros(1, np.int64), np.zeros((1, 8), np.float32)
    rewards = []
    for height in (0.95, 1.5):  # falling freely, within its bounds and above them
        lanes.reset(zero, zero, zero, zero)
        data = lanes._simulators[0].data
        data.qpos[2], data.qvel[:] = height, 0.0
        rewards.append(lanes.step(still)[1][0])
        assert lanes._simulators[0].is_healthy == (height < 1)
        lanes.step(still)  # nothing needs a reset
    assert rewards[0] == pytest.approx(rewards[1] + 1, abs=1e-5)


def test_start_poses_follow_from_the_draw_alone():
    lanes = LocomotionLanes("HalfCheetah-Vel", draw_goals("HalfCheetah-Vel", "train", 0), num_lanes=3)
    zeros, both = np.zeros(3, np.int64), np.array([7, 8, 7])
    first = lanes.reset(np.arange(3), zeros, np.array([0, 0, 4]), both)
    np.testing.assert_array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])
    lanes.step(np.ones((3, 6), np.float32))
    np.testing.assert_array_equal(lanes.reset(np.array([2]), zeros[:1], zeros[:1], np.array([8]))[0], first[1])


@pytest.mark.parametrize("name", NAMES)
def test_splits_say_what_they_hold_out(name):
    assert task_names(name, "test") == task_names(name) == [name]
    goals = {split: draw_goals(name, split, 0) for split in benchmarks.SPLITS}
    assert all(len(drawn) == benchmarks.num_goals(name) for drawn in goals.values())
    if name == "HalfCheetah-Dir":
        assert all(drawn.tolist() == [[-1.0], [1.0]] for drawn in goals.values())  # nothing is held out, as documented
        return
    together = {tuple(goal) for drawn in goals.values() for goal in drawn}
    assert len(together) == 150
    np.testing.assert_array_equal(draw_goals(name, "val", 0), goals["val"])
    assert not np.array_equal(draw_goals(name, "val", 1), goals["val"])
    if name == "Ant-Dir":
        assert np.allclose(np.linalg.norm(goals["train"], axis=1), 1.0, rtol=0, atol=1e-10)
        quadrants = {tuple(goal > 0) for goal in goals["train"]}
        assert len(quadrants) == 4
    else:
        everything = np.concatenate(list(goals.values()))
        assert 0 <= everything.min() < 0.2 and 2.8 < everything.max() <= 3.0


@pytest.mark.parametrize("name", NAMES)
def test_environments_keep_their_promises(name):
    env = make_env(name, num_envs=2, episodes_per_trial=2)
    assert env.horizon == 200
    check_env_specs(env)
    rows = env.rollout(2 * 200, break_when_any_done=False)
    assert ("next", keys.SUCCESS) not in rows.keys(True)  # there is none
    assert rows["next", keys.DONE][0].flatten().nonzero().flatten().tolist() == [199, 399]
    assert not rows["next", keys.TERMINATED].any()
    starts = rows[keys.OBSERVATION][:, [0, 200]].flatten(0, 1)
    assert len(starts.unique(dim=0)) == 4  # every lane and episode starts from its own pose
    env.close()


def trajectories(num_workers, *, seed=4):
    env = make_env("HalfCheetah-Vel", num_envs=3, num_workers=num_workers, seed=seed, episodes_per_trial=2, horizon=5)
    torch.manual_seed(0)
    rows = env.rollout(25, break_when_any_done=False)
    env.close()
    return rows


def test_trajectories_depend_on_the_seed_and_not_on_the_number_of_workers():
    alone, spread, other = trajectories(0), trajectories(2), trajectories(0, seed=5)
    for key in alone.keys(True, True):
        assert torch.equal(alone[key], spread[key]), key
    assert not torch.equal(alone[keys.OBSERVATION], other[keys.OBSERVATION])


def test_a_trial_that_was_dealt_before_saving_starts_in_the_same_pose_after_loading():
    def env():
        return make_env("HalfCheetah-Vel", num_envs=2, episodes_per_trial=1, horizon=4, seed=1)

    ours, theirs = env(), env()
    ours.rollout(8, break_when_any_done=False)
    now = ours.reset()
    theirs.load_checkpoint_state(ours.checkpoint_state())
    again = theirs.reset()
    for key in (keys.OBSERVATION, keys.GOAL):
        assert torch.equal(now[key], again[key])
    actions = torch.full((2, 6), 0.3)
    for _ in range(6):  # and so do all later ones
        (now, ours_next), (again, theirs_next) = (
            (stepped["next"], following)
            for stepped, following in (
                ours.step_and_maybe_reset(now.set(keys.ACTION, actions)),
                theirs.step_and_maybe_reset(again.set(keys.ACTION, actions)),
            )
        )
        assert torch.equal(now[keys.OBSERVATION], again[keys.OBSERVATION])
        now, again = ours_next, theirs_next
        assert torch.equal(now[keys.OBSERVATION], again[keys.OBSERVATION])


def test_evaluation_reports_returns(tmp_path):
    networks = build_networks(observation_dim=17, action_low=[-1.0] * 6, action_high=[1.0] * 6, d_model=8, num_heads=2)
    reports = [
        evaluate(networks, "HalfCheetah-Vel", goals_per_task=3, adaptation_episodes=1, horizon=10, num_envs=lanes)
        for lanes in (2, 2)
    ]
    np.testing.assert_array_equal(reports[0].returns, reports[1].returns)
    assert not reports[0].has_success and reports[0].headline == reports[0].returns[0, :, 1].mean()
    assert "return by episode" in str(reports[0])


@pytest.mark.parametrize("name", ["HalfCheetah-Dir", "Ant-Dir"])
def test_a_lane_can_be_drawn_and_nothing_changes(name):
    skip_without_opengl()
    lanes, unseen = (LocomotionLanes(name, draw_goals(name, "train", 0), num_lanes=1) for _ in range(2))
    zero = np.zeros(1, np.int64)
    with pytest.raises(RuntimeError, match="reset it before"):
        lanes.render(0, size=64)
    for each in (lanes, unseen):
        each.reset(zero, zero, zero, zero)
    first = lanes.render(0, size=64)
    assert first.shape == (64, 64, 3) and first.std() > 5
    for _ in range(10):
        action = np.full((1, len(lanes.action_low)), 0.8, np.float32)
        np.testing.assert_array_equal(lanes.step(action)[0], unseen.step(action)[0])
    assert not np.array_equal(lanes.render(0, size=64), first)
    assert lanes.render(0, size=32).shape == (32, 32, 3)
    lanes.close()


def test_unknown_names_are_answered_with_these():
    with pytest.raises(ValueError, match=r"nearest known: HalfCheetah-\w+"):
        make_env("HalfCheetah")
    with pytest.raises(ValueError, match="Ant-Dir"):
        make_env("Ant-Direction")
    assert [benchmark.name for benchmark in locomotion.BENCHMARKS] == NAMES
