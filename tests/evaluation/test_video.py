"""Recorded trials: the pictures that were promised, of the trial that `play_trials` plays."""

import math

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.envs.utils import ExplorationType, exploration_type

from htrmrl_torchrl import keys, make_env
from htrmrl_torchrl.agent.networks import acting_policy
from htrmrl_torchrl.envs.benchmarks import draw_goals
from htrmrl_torchrl.envs.toy import GOALS, STEP_SIZE
from htrmrl_torchrl.evaluation import play_trials, record_trial, write_video
from tests.helpers import networks_for_toy, rules, skip_without_opengl

GREEN = (46, 204, 113)


def scripted(act):
    return TensorDictModule(act, in_keys=[keys.OBSERVATION, keys.EPISODE], out_keys=[keys.ACTION])


def to_goal_from(episode_that_knows, goal=2):
    """Goes to the goal of the toy from that episode on, before to the opposite side."""

    def act(observation, episode):
        target = torch.from_numpy(GOALS[goal]) * (1.0 if episode.item() >= episode_that_knows else -1.0)
        return torch.clamp((target - observation[:, :2]) / STEP_SIZE, -1, 1)

    return scripted(act)


def record_toy(policy=None, *, adapting=2, evaluating=1, size=128, **choices):
    policy, protocol = policy or to_goal_from(1), rules(adapting, evaluating)
    return record_trial(policy, "toy", protocol, split="train", task=0, goal=2, size=size, **choices)


def marked(frames):
    """Which pictures have the green frame of success [n]."""
    return (frames[:, frames.shape[1] // 2, 0] == GREEN).all(-1).tolist()


@pytest.mark.parametrize(
    ("adapting", "evaluating", "horizon", "every"), [(2, 1, 6, 1), (1, 2, 7, 3), (0, 1, 6, 5), (0, 2, 4, 9)]
)
def test_each_episode_has_its_start_every_nth_step_and_its_end(adapting, evaluating, horizon, every):
    video = record_toy(adapting=adapting, evaluating=evaluating, horizon=horizon, every=every, size=130)
    assert video.frames.shape == ((adapting + evaluating) * (1 + math.ceil(horizon / every)), 130, 130, 3)
    assert video.frames.dtype == np.uint8 and video.fps == 4 / every
    assert len(video.success) == adapting + evaluating
    assert len(np.unique(video.frames, axis=0)) == len(video.frames)


def test_success_is_marked_where_it_was_reached():
    """The toy succeeds in an episode's last step only."""
    video = record_toy(to_goal_from(1), every=2)
    assert video.success == (False, True, True)
    assert marked(video.frames) == [False] * 4 + [False, False, False, True] * 2


def test_pictures_show_the_state_before_the_reset():
    video = record_toy(to_goal_from(0), every=6)
    scale = 0.24 * 128
    x, y = (64 + scale * GOALS[2][0], 64 - scale * GOALS[2][1])
    for first, last in video.frames.reshape(3, 2, *video.frames.shape[1:]):
        assert np.abs(first[64, 64].astype(int) - (31, 95, 191)).max() < 20  # the point starts in the middle
        assert np.abs(last[int(y), int(x)].astype(int) - (31, 95, 191)).max() < 20  # and ends at the goal


def test_adaptation_is_sampled_and_evaluation_is_not():
    seen = []

    def act(observation, episode):
        seen.append(exploration_type())
        return -observation[:, :2]

    record_toy(scripted(act), evaluating=2)
    assert seen == [ExplorationType.RANDOM] * 12 + [ExplorationType.DETERMINISTIC] * 12


@pytest.mark.parametrize("seed", [0, 5])
def test_it_is_the_trial_that_the_evaluation_plays(seed):
    tokens = []
    spy = TensorDictModule(
        lambda o, a, r: tokens.append(torch.cat([o, a, r], -1)),
        in_keys=[keys.OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD],
        out_keys=[],
    )
    policy = TensorDictSequential(spy, acting_policy(networks_for_toy(), seed=1))
    env = make_env("toy", num_envs=1, episodes_per_trial=6, pairs=[(0, 2)])
    outcomes = play_trials(policy, env, rules(4, 2), seed=seed)
    played, tokens[:] = torch.stack(tokens), []
    video = record_toy(policy, adapting=4, evaluating=2, seed=seed)
    assert torch.equal(torch.stack(tokens), played) and len(played) == 36
    assert list(video.success) == outcomes["success"][0].tolist()


def test_recording_changes_no_random_stream_and_no_weights():
    networks = networks_for_toy()
    policy = acting_policy(networks)
    weights = {name: value.clone() for name, value in networks.policy.state_dict().items()}
    before = networks.memory.checkpoint_state()
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = record_toy(policy, seed=3)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()
    assert networks.memory.checkpoint_state() == before
    assert all(torch.equal(value, weights[name]) for name, value in networks.policy.state_dict().items())
    torch.rand(1)
    assert (record_toy(policy, seed=3).frames == first.frames).all()
    assert (record_toy(policy, seed=4).frames != first.frames).any()


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"every": 0}, "every must be a whole number of at least 1"),
        ({"size": 100}, "size must be at least 128"),
        ({"adapting": -1}, "adaptation_episodes must be a whole number of at least 0"),
        ({"evaluating": 0}, "evaluation_episodes must be a whole number of at least 1"),
    ],
)
def test_wrong_numbers_are_refused(choices, said):
    with pytest.raises(ValueError, match=said):
        record_toy(**choices)


def test_unknown_names_and_goals_are_refused():
    with pytest.raises(ValueError, match="ML10"):
        record_trial(to_goal_from(0), "ML11", rules(1), split="train", task=0, goal=0)
    with pytest.raises(ValueError, match=r"Pairs \[\(0, 9\)\] are out of range"):
        record_trial(to_goal_from(0), "toy", rules(1), split="train", task=0, goal=9)


def test_a_video_becomes_a_file(tmp_path):
    video = record_toy()
    for suffix, magic in ((".mp4", b"ftyp"), (".gif", b"GIF8")):
        assert magic in write_video(video, tmp_path / f"trial{suffix}").read_bytes()[:12]
    with pytest.raises(ValueError, match=r"ends in \.mp4 or \.gif"):
        write_video(video, tmp_path / "trial.webm")


def test_metaworld_success_stays_marked_until_its_episode_ends():
    """Reaches the target, leaves it again, and begins the next episode without a mark."""
    skip_without_opengl()
    goal = torch.from_numpy(draw_goals("ML1:reach", "train", 0)[0][3][3:]).float()
    steps = []

    def act(observation, episode):
        step = len(steps) % 60
        steps.append(step)
        hand = observation[:, :3]
        motion = 10 * (goal - hand) if step < 40 else torch.tensor([[0.0, 0.0, 1.0]])
        return torch.cat([motion * (episode < 1), torch.zeros(1, 1)], -1).clamp(-1, 1)

    policy = scripted(act)
    env = make_env("ML1:reach", num_envs=1, episodes_per_trial=2, horizon=60, pairs=[(0, 3)])
    row, successes = env.reset(), []
    for _ in range(60):
        row = env.step(policy(row))
        successes.append(row["next", "success"].item())
        row = env.step_mdp(row)
    env.close()
    first = successes.index(True) + 1  # counted from 1: the number in the caption
    assert 5 < first < 40 and not successes[-1]

    steps.clear()
    video = record_trial(policy, "ML1:reach", rules(1), split="train", task=0, goal=3, horizon=60, every=4, size=128)
    assert video.success == (True, False) and video.fps == 20
    assert video.frames.shape == (2 * 16, 128, 128, 3)
    assert marked(video.frames) == [step >= first for step in range(0, 61, 4)] + [False] * 16
