"""Pooled simulators against fresh ones of Meta-World's own."""

import pickle

import numpy as np
import pytest
import torch
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.types import Task
from torchrl.envs import check_env_specs

from htrmrl_torchrl.envs import benchmarks, make_env
from htrmrl_torchrl.envs.metaworld import MetaWorldLanes
from tests.experts import drawn_goals

ALL_TASKS = list(ALL_V3_ENVIRONMENTS)


def actions(steps, seed):
    """Random, with a downward push now and then, so that hands touch things."""
    drawn = np.random.default_rng(seed).uniform(-1, 1, (steps, 4)).astype(np.float32)
    drawn[steps // 4 : steps // 2, 2] = -1.0
    return drawn


def fresh_episode(task, goal, commands):
    """What Meta-World itself does with a simulator that has never been used."""
    env = ALL_V3_ENVIRONMENTS[task]()
    data = {"rand_vec": goal, "env_cls": type(env), "partially_observable": True}
    env.set_task(Task(env_name=task, data=pickle.dumps(data)))
    observations, rewards, successes = [env.reset()[0]], [], []
    for command in commands:
        observation, reward, _, _, info = env.step(command)
        observations.append(observation)
        rewards.append(reward)
        successes.append(bool(info["success"]))
    env.close()
    return np.array(observations, np.float32), np.array(rewards, np.float32), np.array(successes)


def lane_episode(lanes, task, goal, commands):
    observations, rewards, successes = [lanes.reset(np.array([0]), np.array([task]), np.array([goal]))[0]], [], []
    for command in commands:
        observation, reward, success = lanes.step(command[None])
        observations.append(observation[0])
        rewards.append(reward[0])
        successes.append(success[0])
    return np.array(observations), np.array(rewards), np.array(successes)


def assert_reuse_equals_fresh(task, other_task, steps):
    goals = drawn_goals(task)
    lanes = MetaWorldLanes([task, other_task], [goals, drawn_goals(other_task, 1)], num_lanes=1)
    first, second = actions(steps, 1), actions(steps, 2)
    lane_episode(lanes, 0, 0, first)
    used = lanes._simulators[0]
    lane_episode(lanes, 1, 0, first)  # another task meanwhile: the simulator goes to the pool
    for _ in range(2):  # once from the pool with another goal, once more with the same goal
        results = lane_episode(lanes, 0, 1, second)
        assert lanes._simulators[0] is used
        for ours, theirs in zip(results, fresh_episode(task, goals[1], second), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    lanes.close()


@pytest.mark.parametrize("task", ["reach-v3", "drawer-close-v3", "basketball-v3", "peg-insert-side-v3", "hammer-v3"])
def test_a_reused_simulator_equals_a_fresh_one(task):
    assert_reuse_equals_fresh(task, "push-v3", steps=60)


@pytest.mark.slow
@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_reused_simulator_of_any_task_equals_a_fresh_one(task):
    assert_reuse_equals_fresh(task, "push-v3" if task != "push-v3" else "reach-v3", steps=500)


def test_the_comparison_notices_another_goal():
    """Negative control: the goal shows in the rewards, so a wrong one would be seen."""
    goals, commands = drawn_goals("reach-v3"), actions(10, 1)
    one, other = (fresh_episode("reach-v3", goal, commands) for goal in goals)
    assert not np.array_equal(one[1], other[1])


def test_the_goal_is_hidden():
    env = make_env("ML1:reach", num_envs=2, episodes_per_trial=1, horizon=5)
    rows = env.rollout(5)
    assert rows["observation"].shape == (2, 5, 39)
    assert not rows["observation"][..., -3:].any() and not rows["next", "observation"][..., -3:].any()
    env.close()


def test_lanes_that_swap_tasks_need_no_new_simulators():
    goals = [drawn_goals(task, 1) for task in ("reach-v3", "push-v3")]
    lanes = MetaWorldLanes(["reach-v3", "push-v3"], goals, num_lanes=2)
    both, none = np.arange(2), np.zeros(2, dtype=np.int64)
    lanes.reset(both, np.array([0, 1]), none)
    before = list(lanes._simulators)
    lanes.reset(both, np.array([1, 0]), none)
    assert lanes._simulators == before[::-1] and not any(lanes._pool.values())
    lanes.close()


def test_a_whole_episode_of_500_steps_can_be_followed_by_another():
    env = make_env("ML1:reach", num_envs=1, episodes_per_trial=2)
    rows = env.rollout(1000, break_when_any_done=False)
    assert rows["next", "done"].flatten().nonzero().flatten().tolist() == [499, 999]
    assert rows["episode"].flatten().unique().tolist() == [0, 1]
    env.close()


def test_both_backends_give_the_same_trajectories():
    """Through ``make_env``, over resets, trials and changes of task; workers use the same builder."""
    rows = []
    for backend in ("fast", "official"):
        settings = {"num_envs": 3, "episodes_per_trial": 2, "horizon": 12, "seed": 1}
        env = make_env("custom:[reach,push,hammer]/[sweep]", backend=backend, **settings)
        torch.manual_seed(0)
        rows.append(env.rollout(60, break_when_any_done=False))
        env.close()
    assert rows[0]["task"].unique().tolist() == [0, 1, 2] and rows[0]["next", "reward"].unique().numel() > 100
    for key in rows[0].keys(True, True):
        assert torch.equal(rows[0][key], rows[1][key]), key


def test_the_official_backend_steps_meta_worlds_own_classes():
    goals = [drawn_goals("reach-v3", 1)]
    for backend in ("fast", "official"):
        lanes = MetaWorldLanes(["reach-v3"], goals, num_lanes=1, backend=backend)
        lanes.reset(np.array([0]), np.array([0]), np.array([0]))
        assert (type(lanes._simulators[0]) is ALL_V3_ENVIRONMENTS["reach-v3"]) == (backend == "official")
        lanes.close()
    with pytest.raises(ValueError, match="backend='quick' is unknown; choose one of fast, official"):
        MetaWorldLanes(["reach-v3"], goals, num_lanes=1, backend="quick")


def test_specs_of_ml1_are_exact():
    env = make_env("ML1:reach", num_envs=2, episodes_per_trial=2, horizon=10)
    check_env_specs(env)
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_specs_of_ml10_are_exact(num_workers):
    env = make_env("ML10", num_envs=4, episodes_per_trial=2, horizon=10, num_workers=num_workers)
    check_env_specs(env)
    env.close()


def test_tasks_and_goals_are_those_of_the_pairs():
    """A lane given (task, goal) plays exactly that official goal, as Meta-World's own simulator would."""
    name = "custom:[reach,drawer-close]/[push]"
    pairs = [(0, 7), (1, 3)]
    env = make_env(name, num_envs=2, episodes_per_trial=1, horizon=20, pairs=pairs)
    row, commands = env.reset(), actions(20, 4)
    assert row["task"].flatten().tolist() == [0, 1] and row["goal"].flatten().tolist() == [7, 3]
    rewards = []
    for command in commands:
        row["action"] = torch.from_numpy(command).expand(2, 4)
        row = env.step(row)
        rewards.append(row["next", "reward"][:, 0].numpy())
        row = env.step_mdp(row)
    names, goals = benchmarks.task_names(name), benchmarks.draw_goals(name, "train", 0)
    for lane, (task, goal) in enumerate(pairs):
        expected = fresh_episode(names[task], goals[task][goal], commands)[1]
        np.testing.assert_array_equal(np.array(rewards)[:, lane], expected)
    env.close()
