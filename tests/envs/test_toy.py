"""The toy's optimum, played by a script and compared with the numbers on paper."""

import itertools

import numpy as np
import pytest
import torch
from torchrl.envs import check_env_specs

from htrmrl_torchrl.envs import make_env
from htrmrl_torchrl.envs.toy import GOALS, STEP_SIZE

K, H = 3, 6
MEAN_GOAL = GOALS.mean(0)
SCOUT = MEAN_GOAL / np.linalg.norm(MEAN_GOAL)  # the best place to be while the goal is unknown


def play_trial(env, remember):
    """Go to the scouting place, read the goal off the first reward, then go to it; returns [lanes, K] of both."""
    row = env.reset()
    known = torch.full((env.batch_size[0],), -1)
    rewards, successes = [], []
    for _ in range(K):
        target = torch.from_numpy(np.where((known < 0)[:, None], SCOUT, GOALS[known]))
        for _ in range(H):
            row["action"] = ((target - row["observation"][:, :2]) / STEP_SIZE).float()
            row = env.step(row)
            last = row["next"].clone()
            row = env.maybe_reset(env.step_mdp(row))
        rewards.append(last["reward"][:, 0])
        successes.append(last["success"][:, 0])
        if remember:
            inner = torch.from_numpy(GOALS @ SCOUT)  # [4] what each goal would have paid at the scouting place
            known = torch.where(known < 0, (rewards[0][:, None] - inner).abs().argmin(-1), known)
    return torch.stack(rewards, 1), torch.stack(successes, 1)


def every_goal():
    return make_env("toy", num_envs=4, episodes_per_trial=K, pairs=[(0, goal) for goal in range(4)])


def test_a_player_that_remembers_reaches_the_optimum_on_paper():
    rewards, successes = play_trial(every_goal(), remember=True)
    assert successes.float().mean(0).tolist() == [0.25, 1.0, 1.0]
    np.testing.assert_allclose(rewards.mean(0), [np.linalg.norm(MEAN_GOAL), 1, 1], atol=1e-6)
    assert abs(np.linalg.norm(MEAN_GOAL) - 0.0632) < 1e-4


def test_a_player_without_memory_stays_at_the_first_episode():
    rewards, successes = play_trial(every_goal(), remember=False)
    assert successes.float().mean(0).tolist() == [0.25, 0.25, 0.25]
    np.testing.assert_allclose(rewards.mean(0), [np.linalg.norm(MEAN_GOAL)] * 3, atol=1e-6)


def test_the_first_episodes_optimum_is_right():
    """Nowhere on the disc is the expected reward higher, and no two goals can be reached at once."""
    angles = np.deg2rad(np.arange(360))
    circle = np.stack([np.cos(angles), np.sin(angles)], -1)
    disc = np.concatenate([circle * radius for radius in np.linspace(0, 1, 21)])
    assert (disc @ MEAN_GOAL).max() <= np.linalg.norm(MEAN_GOAL) + 1e-9
    assert all(np.linalg.norm(a - b) >= 1.07 for a, b in itertools.combinations(GOALS, 2))
    assert min(np.linalg.norm(SCOUT - goal) for goal in GOALS) < 0.04


@pytest.mark.parametrize("place", [*GOALS, SCOUT])
def test_one_final_reward_tells_the_goal(place):
    assert all(abs(a - b) >= 0.26 for a, b in itertools.combinations(GOALS @ place, 2))


def test_nothing_tells_the_goal_before_the_episode_ends():
    env = every_goal()
    row = env.reset()
    for step in range(H):
        row["action"] = torch.full((4, 2), 0.3)
        row = env.step(row)
        following = row["next"]
        if step < H - 1:
            for key in ("observation", "reward", "success", "prev_reward"):
                assert (following[key] == following[key][0]).all(), key
        row = env.step_mdp(row)
    assert len(set(following["reward"].flatten().tolist())) == 4  # the control: now it does


def test_position_stays_on_the_disc_and_time_runs_out():
    env = make_env("toy", num_envs=1, episodes_per_trial=1)
    row, left = env.reset(), []
    for _ in range(H):
        row["action"] = torch.ones(1, 2)
        row = env.step_mdp(env.step(row))
        left.append(row["observation"][0, 2].item())
        assert row["observation"][0, :2].norm() <= 1 + 1e-6
    np.testing.assert_allclose(left, [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0], atol=1e-6)


def test_specs_are_exact():
    check_env_specs(make_env("toy", num_envs=5, episodes_per_trial=2))


def test_the_picture_shows_the_point_and_the_hidden_goal():
    size = 200
    env = every_goal()
    row = env.reset()

    def colour(lane, place):  # positions [-1, 1] are drawn on 48 % of the picture, y upwards
        x, y = 0.5 + 0.24 * place[0], 0.5 - 0.24 * place[1]
        return env.render_lane(lane, size=size)[int(y * size), int(x * size)]

    blue, orange, outside = (31, 95, 191), (251, 217, 165), (244, 241, 234)
    for lane, hidden in enumerate(GOALS):
        assert (colour(lane, (0.0, 0.0)) == blue).all()  # where the point starts
        for goal in GOALS:
            assert (colour(lane, 1.2 * goal) == (orange if (goal == hidden).all() else outside)).all()
    row["action"] = torch.tensor([[0.0, 1.0]]).expand(4, 2)
    env.step(row)
    assert (colour(0, (0.0, STEP_SIZE)) == blue).all()
    assert (colour(0, (0.0, 0.0)) == 255).all()
