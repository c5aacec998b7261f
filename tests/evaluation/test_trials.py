"""Evaluation counts right (a scripted agent) and changes nothing (a real one)."""

import copy

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs.utils import ExplorationType, set_exploration_type

from htrmrl_torchrl import keys, make_env
from htrmrl_torchrl.envs.toy import GOALS, STEP_SIZE
from htrmrl_torchrl.evaluation import goal_grid, play_trials, success_metrics
from htrmrl_torchrl.networks import acting_policy, build_networks

K = 3


def toy_grid(episodes_per_trial=K + 1, repeats=1):
    grid = goal_grid(num_tasks=1, goals_per_task=4) * repeats
    return make_env("toy", num_envs=len(grid), pairs=grid, episodes_per_trial=episodes_per_trial)


def towards(goal, position):
    return torch.clamp((goal - position) / STEP_SIZE, -1, 1)


def scripted(by_action, by_mean):
    """Goes to the goal in the episodes where it knows it, elsewhere to the opposite side, where nothing succeeds.

    ``by_action[episode]`` are the goals that the sampled action knows, ``by_mean`` those that the mean action knows.
    """

    def act(observation, goal, episode):
        where = torch.from_numpy(GOALS)[goal.squeeze(-1)]
        position = observation[:, :2]
        known = torch.tensor([[int(g) in by_action.get(int(k), ())] for g, k in zip(goal, episode, strict=True)])
        mean_knows = torch.tensor([[int(g) in by_mean] for g in goal])
        action = torch.where(known, towards(where, position), towards(-where, position))
        mean = torch.where(mean_knows, towards(where, position), towards(-where, position))
        return action, mean

    return TensorDictModule(act, in_keys=[keys.OBSERVATION, keys.GOAL, keys.EPISODE], out_keys=[keys.ACTION, keys.LOC])


def test_a_scripted_agent_gets_exactly_its_share_in_each_episode():
    policy = scripted({1: {2}, 2: {0, 2}}, by_mean={0, 1, 3})
    outcomes = play_trials(policy, toy_grid(), adaptation_episodes=K)
    expected = [[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert outcomes["success"].int().tolist() == expected
    assert outcomes["goal"].tolist() == [0, 1, 2, 3] and outcomes["task"].tolist() == [0] * 4
    # The only reward of an episode is <goal, position> at its end: 1 at the goal, -1 on the opposite side.
    assert torch.allclose(outcomes["return"], 2 * outcomes["success"].float() - 1, atol=1e-5)
    metrics = success_metrics(outcomes, ["hidden-goal"], split="val")
    assert metrics["eval/val_success"] == metrics["eval/val_success/hidden-goal"] == 0.75
    assert [metrics[f"eval/val_success_by_episode/{k}"] for k in range(4)] == [0, 0.25, 0.5, 0.75]


def test_several_evaluation_episodes_play_the_mean_action():
    policy = scripted({0: {0}, 1: {0, 1}, 2: {0, 1, 2}}, by_mean={3})
    outcomes = play_trials(policy, toy_grid(), adaptation_episodes=2, evaluation_episodes=2)
    assert outcomes["success"].int().sum(0).tolist() == [1, 2, 1, 1]
    assert success_metrics(outcomes, ["x"], split="test", evaluation_episodes=2)["eval/test_success"] == 0.25


def test_longer_trials_than_needed_are_counted_alike():
    policy = scripted({1: {2}, 2: {0, 2}}, by_mean={0, 1, 3})
    short, long = (play_trials(policy, toy_grid(n), adaptation_episodes=K) for n in (K + 1, K + 5))
    assert (short == long).all()


def test_trials_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match=r"trials have 3 episodes; 3 \+ 1 = 4 are to be played"):
        play_trials(scripted({}, by_mean=()), toy_grid(K), adaptation_episodes=K)


def test_tasks_weigh_equally_whatever_their_number_of_goals():
    outcomes = TensorDict(
        {
            "task": torch.tensor([0, 0, 0, 1]),
            "goal": torch.tensor([0, 1, 2, 0]),
            "success": torch.tensor([[True, True], [False, True], [False, True], [True, False]]),
            "return": torch.tensor([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0], [0.0, 1.0]]),
        },
        batch_size=[4],
    )
    metrics = success_metrics(outcomes, ["a", "b", "never played"], split="test")
    assert metrics == {
        "eval/test_success/a": 1.0,
        "eval/test_success/b": 0.0,
        "eval/test_success": 0.5,
        "eval/test_return": 3.0,
        "eval/test_success_by_episode/0": pytest.approx((1 / 3 + 1) / 2),
        "eval/test_success_by_episode/1": 0.5,
    }


def test_the_grid_holds_every_pair_once():
    grid = goal_grid(num_tasks=3, goals_per_task=5)
    assert sorted(grid) == [(t, g) for t in range(3) for g in range(5)]


# --------------------------------------------------------------------------------------------------- changes nothing


def networks_for_toy(**choices):
    torch.manual_seed(0)
    return build_networks(
        observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2, window=2, episodes=3, d_model=8, num_heads=2,
        intra_layers=1, inter_layers=1, **choices,
    )  # fmt: skip


@pytest.mark.parametrize("strategy", ["recent", "uniform"])
def test_the_same_call_gives_the_same_result(strategy):
    """Also after another grid was played in between, by the same policy."""
    networks = networks_for_toy(strategy=strategy)
    for parameter in networks.actor.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    policy, env = acting_policy(networks, seed=1), toy_grid()
    first = play_trials(policy, env, adaptation_episodes=K, seed=2)
    play_trials(policy, toy_grid(K + 2), adaptation_episodes=K + 1)
    assert (play_trials(policy, env, adaptation_episodes=K, seed=2) == first).all()
    assert (play_trials(acting_policy(networks, seed=1), toy_grid(), adaptation_episodes=K, seed=2) == first).all()
    assert not (play_trials(policy, env, adaptation_episodes=K, seed=3)["return"] == first["return"]).all()


def test_evaluation_changes_no_weights_no_random_stream_and_no_other_memory():
    networks = networks_for_toy()
    training = make_env("toy", num_envs=4, episodes_per_trial=2)
    now = training.reset()
    with torch.no_grad():
        for _ in range(8):
            _, now = training.step_and_maybe_reset(networks.policy(now))
    weights = copy.deepcopy(networks.policy.state_dict())
    memory_state = networks.memory.checkpoint_state()
    rng, numpy_rng = torch.get_rng_state(), np.random.get_state()[1].copy()
    play_trials(acting_policy(networks), toy_grid(), adaptation_episodes=K)
    assert torch.equal(torch.get_rng_state(), rng) and (np.random.get_state()[1] == numpy_rng).all()
    assert networks.memory.checkpoint_state() == memory_state
    for name, value in networks.policy.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_training_goes_on_as_if_there_had_been_no_evaluation():
    rollouts = []
    for evaluates in (False, True):
        networks = networks_for_toy()
        env = make_env("toy", num_envs=4, episodes_per_trial=2)
        torch.manual_seed(1)
        now, seen = env.reset(), []
        for t in range(30):
            if evaluates and t in (0, 3, 9):
                play_trials(acting_policy(networks), toy_grid(), adaptation_episodes=1)
            with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
                stepped, now = env.step_and_maybe_reset(networks.policy(now))
            seen.append(stepped.select(keys.ACTION, "window", keys.STATE_VALUE, keys.GOAL, keys.OBSERVATION).clone())
        rollouts.append(torch.stack(seen))
    assert (rollouts[0] == rollouts[1]).all()


def test_exploration_is_sampled_in_adaptation_and_the_mean_afterwards():
    networks = networks_for_toy(init_std=2.0, strategy="recent")
    env = toy_grid()
    runs = [play_trials(acting_policy(networks), env, adaptation_episodes=K, seed=seed)["return"] for seed in (0, 1)]
    assert not torch.equal(runs[0][:, :K], runs[1][:, :K])
    only_mean = [
        play_trials(acting_policy(networks), env, adaptation_episodes=0, evaluation_episodes=4, seed=seed)["return"]
        for seed in (0, 1)
    ]
    assert torch.equal(*only_mean)
