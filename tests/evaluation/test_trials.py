"""Evaluation counts right (a scripted agent) and changes nothing (a real one)."""

import copy

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type

from htrmrl_torchrl import keys, make_env
from htrmrl_torchrl.agent.networks import acting_policy
from htrmrl_torchrl.envs.deck import FixedGrid
from htrmrl_torchrl.envs.toy import GOALS, STEP_SIZE
from htrmrl_torchrl.envs.trial import TrialEnv
from htrmrl_torchrl.evaluation import ExactPolicy, goal_grid, play_trials
from tests.helpers import assert_same, networks_for_toy, rules

K = 3


def toy_grid(episodes_per_trial=K + 1, lanes=4):
    grid = goal_grid(num_tasks=1, goals_per_task=4)
    return make_env("toy", num_envs=lanes, pairs=grid, episodes_per_trial=episodes_per_trial)


def towards(goal, position):
    return torch.clamp((goal - position) / STEP_SIZE, -1, 1)


def scripted(by_action, by_mean):
    """Goes to the goal in the episodes where it knows it, elsewhere to the opposite side, where nothing succeeds.

    ``by_action[episode]`` are the goals that the sampled action knows, ``by_mean`` those that the mean action knows:
    which of the two is asked for is what TorchRL's exploration type says.
    """

    def act(observation, goal, episode):
        where = torch.from_numpy(GOALS)[goal.squeeze(-1)]
        if exploration_type() == ExplorationType.DETERMINISTIC:
            knows = [[int(g) in by_mean] for g in goal]
        else:
            assert exploration_type() == ExplorationType.RANDOM
            knows = [[int(g) in by_action.get(int(k), ())] for g, k in zip(goal, episode, strict=True)]
        return towards(torch.where(torch.tensor(knows), where, -where), observation[:, :2])

    return TensorDictModule(act, in_keys=[keys.OBSERVATION, keys.GOAL, keys.EPISODE], out_keys=[keys.ACTION])


def test_a_scripted_agent_gets_exactly_its_share_in_each_episode():
    policy = scripted({1: {2}, 2: {0, 2}}, by_mean={0, 1, 3})
    outcomes = play_trials(policy, toy_grid(), rules(K))
    expected = [[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert outcomes["success"].int().tolist() == expected
    assert outcomes["goal"].tolist() == [0, 1, 2, 3] and outcomes["task"].tolist() == [0] * 4
    # The only reward of an episode is <goal, position> at its end: 1 at the goal, -1 on the opposite side.
    assert_same(outcomes["return"], 2 * outcomes["success"].float() - 1)
    # Only the last of the six steps can succeed.
    assert outcomes["steps_to_success"].tolist() == [[6 * success for success in row] for row in expected]


def test_steps_to_success_are_those_of_the_first_success():
    """Each lane stands where success begins ever earlier, and then stays."""

    class Lanes:
        obs_dim, num_lanes = 1, 3
        action_low, action_high = -np.ones(1, dtype=np.float32), np.ones(1, dtype=np.float32)

        def __init__(self):
            self.steps = np.zeros(3, dtype=int)

        def reset(self, lanes, tasks, goals, draws=None):
            self.steps[lanes] = 0
            return np.zeros((len(lanes), 1), dtype=np.float32)

        def step(self, actions):
            self.steps += 1
            success = np.array([self.steps[0] == 2, self.steps[1] >= 3, False])
            return np.zeros((3, 1), dtype=np.float32), np.array([1, 0.5, 0], dtype=np.float32), success

    env = TrialEnv(Lanes(), FixedGrid([(0, 7), (1, 8), (2, 9)]), episodes_per_trial=2, horizon=5)
    idle = TensorDictModule(torch.zeros_like, in_keys=[keys.OBSERVATION], out_keys=[keys.ACTION])
    outcomes = play_trials(idle, env, rules(1))
    assert outcomes["steps_to_success"].tolist() == [[2, 2], [3, 3], [0, 0]]
    assert outcomes["success"].tolist() == [[True, True], [True, True], [False, False]]
    assert outcomes["return"].tolist() == [[5.0, 5.0], [2.5, 2.5], [0.0, 0.0]]  # success ends nothing
    assert outcomes["task"].tolist() == [0, 1, 2] and outcomes["goal"].tolist() == [7, 8, 9]


def test_several_evaluation_episodes_play_the_mean_action():
    policy = scripted({0: {0}, 1: {0, 1}, 2: {0, 1, 2}}, by_mean={3})
    outcomes = play_trials(policy, toy_grid(), rules(2, 2))
    assert outcomes["success"].int().sum(0).tolist() == [1, 2, 1, 1]


def test_sampled_actions_in_the_evaluation_episodes_too():
    policy = scripted({0: {0}, 1: {0, 1}, 2: {0, 1, 2}}, by_mean={3})
    outcomes = play_trials(policy, toy_grid(), rules(2, 2, mean_action=False))
    assert outcomes["success"].int().sum(0).tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_more_trials_than_lanes_are_played_in_rounds(lanes):
    """Also where the lanes do not divide them: the surplus of the last round is not counted."""
    policy = scripted({1: {2}, 2: {0, 2}}, by_mean={0, 1, 3})
    at_once = play_trials(policy, toy_grid(), rules(K))
    rounds = play_trials(policy, toy_grid(lanes=lanes), rules(K), trials=4)
    assert rounds.batch_size == at_once.batch_size == torch.Size([4])
    assert (rounds == at_once).all()


def test_without_a_number_of_trials_every_lane_plays_one():
    outcomes = play_trials(scripted({}, by_mean={0}), toy_grid(lanes=3), rules(K))
    assert outcomes["goal"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("episodes", [K, K + 5])
def test_trials_of_another_length_are_refused(episodes):
    with pytest.raises(ValueError, match=rf"trials have {episodes} episodes; 3 \+ 1 = 4 are needed"):
        play_trials(scripted({}, by_mean=()), toy_grid(episodes), rules(K))


def test_the_grid_holds_every_pair_once():
    grid = goal_grid(num_tasks=3, goals_per_task=5)
    assert sorted(grid) == [(t, g) for t in range(3) for g in range(5)]


# --------------------------------------------------------------------------------------------------- changes nothing


@pytest.mark.parametrize("strategy", ["recent", "uniform"])
def test_the_same_call_gives_the_same_result(strategy):
    """Also after another grid was played in between, by the same policy."""
    networks = networks_for_toy(strategy=strategy)
    for parameter in networks.actor.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    policy, env = acting_policy(networks, seed=1), toy_grid()
    first = play_trials(policy, env, rules(K), seed=2)
    play_trials(policy, toy_grid(K + 2), rules(K + 1))
    assert (play_trials(policy, env, rules(K), seed=2) == first).all()
    assert (play_trials(acting_policy(networks, seed=1), toy_grid(), rules(K), seed=2) == first).all()
    assert not (play_trials(policy, env, rules(K), seed=3)["return"] == first["return"]).all()


@pytest.mark.parametrize("adaptation_episodes", [0, K])
@pytest.mark.parametrize("encoder_kind", ["htrmrl", "rl2"])
def test_separate_episodes_all_start_from_the_memory_of_adaptation(encoder_kind, adaptation_episodes):
    """So with the mean action they are equal, and equal to the first that counts; in two rounds of two lanes."""
    networks = networks_for_toy(strategy="recent", encoder_kind=encoder_kind)
    for parameter in networks.actor.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    played = {
        separate: play_trials(
            acting_policy(networks), toy_grid(adaptation_episodes + 3, lanes=2),
            rules(adaptation_episodes, 3, separate=separate), trials=4,
        )["return"]
        for separate in (True, False)
    }  # fmt: skip
    counted = {separate: returns[:, adaptation_episodes:] for separate, returns in played.items()}
    assert torch.equal(counted[True], counted[True][:, :1].expand(4, 3))
    assert torch.equal(counted[True][:2, 0], counted[False][:2, 0])  # later rounds have other noise in adaptation
    assert not torch.equal(counted[False], counted[False][:, :1].expand(4, 3))
    one = toy_grid(adaptation_episodes + 1, lanes=2)
    with_one = play_trials(acting_policy(networks), one, rules(adaptation_episodes))["return"]
    assert torch.equal(with_one[:, -1], counted[True][:2, 0])


def test_separate_episodes_are_shown_windows_of_adaptation_only():
    policy, shown = acting_policy(networks_for_toy(strategy="uniform")), []
    policy[0].register_forward_hook(lambda _, __, out: shown.append(out[keys.WINDOW_EPISODE].clone()))
    for separate in (True, False):
        shown.clear()
        play_trials(policy, toy_grid(K + 3), rules(K, 3, separate=separate, mean_action=False))
        counted = torch.stack(shown).unflatten(0, (K + 3, -1))[K:]  # [episodes, steps, lanes, slots]
        assert int(counted.max()) == (K - 1 if separate else K + 1)
        draws = counted[:, 0].flatten(1)
        assert len({tuple(draw) for draw in draws.tolist()}) == 3  # each draws anew


@pytest.mark.parametrize("encoder_kind", ["htrmrl", "rl2"])
def test_evaluation_changes_no_weights_no_random_stream_and_no_other_memory(encoder_kind):
    networks = networks_for_toy(encoder_kind=encoder_kind)
    training = make_env("toy", num_envs=4, episodes_per_trial=2)
    now = training.reset()
    with torch.no_grad():
        for _ in range(8):
            _, now = training.step_and_maybe_reset(networks.policy(now))
    weights = copy.deepcopy(networks.policy.state_dict())
    memory_state = networks.memory.checkpoint_state()
    rng, numpy_rng = torch.get_rng_state(), np.random.get_state()[1].copy()
    play_trials(acting_policy(networks), toy_grid(), rules(K))
    assert torch.equal(torch.get_rng_state(), rng) and (np.random.get_state()[1] == numpy_rng).all()
    assert networks.memory.checkpoint_state() == memory_state
    for name, value in networks.policy.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_a_trial_never_sees_that_of_another_goal_unless_asked_for():
    """Networks that were trained with scope=lane are evaluated like those with scope=trial, in several rounds."""
    lane, trial = (networks_for_toy(strategy="recent", **scope) for scope in ({"scope": "lane", "max_episodes": 9}, {}))
    env = toy_grid(lanes=2)

    def play(policy):
        return play_trials(policy, env, rules(K), trials=4)["return"]

    expected = play(acting_policy(trial))
    assert torch.equal(play(acting_policy(lane)), expected)
    asked = play(acting_policy(lane, scope="lane"))
    assert torch.equal(asked[:2], expected[:2]) and not (asked[2:] == expected[2:]).any()


@pytest.mark.parametrize("encoder_kind", ["htrmrl", "rl2"])
def test_training_goes_on_as_if_there_had_been_no_evaluation(encoder_kind):
    rollouts = []
    for evaluates in (False, True):
        networks = networks_for_toy(encoder_kind=encoder_kind)
        env = make_env("toy", num_envs=4, episodes_per_trial=2)
        torch.manual_seed(1)
        now, seen = env.reset(), []
        for t in range(30):
            if evaluates and t in (0, 3, 9):
                play_trials(acting_policy(networks), toy_grid(2), rules(1))
            with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
                stepped, now = env.step_and_maybe_reset(networks.policy(now))
            seen.append(stepped.select(keys.ACTION, "window", keys.STATE_VALUE, keys.GOAL, keys.OBSERVATION).clone())
        rollouts.append(torch.stack(seen))
    assert (rollouts[0] == rollouts[1]).all()


def test_exploration_is_sampled_in_adaptation_and_the_mean_afterwards():
    networks = networks_for_toy(init_std=2.0, strategy="recent")
    env = toy_grid()
    runs = [play_trials(acting_policy(networks), env, rules(K), seed=seed)["return"] for seed in (0, 1)]
    assert not torch.equal(runs[0][:, :K], runs[1][:, :K])
    only_mean = [play_trials(acting_policy(networks), env, rules(0, 4), seed=seed)["return"] for seed in (0, 1)]
    assert torch.equal(*only_mean)


@pytest.mark.parametrize(
    "kind", [{}, {"encoder_kind": "rl2"}, {"encoder_kind": "mlp"}, {"std": "dependent", "observe_token": True}], ids=str
)
@pytest.mark.parametrize("exact", [True, False])
def test_lean_trials_are_those_of_a_policy_that_somebody_looks_at(kind, exact, monkeypatch):
    """Bit for bit, each episode that counts starting anew; looking on takes the way through tensordicts."""
    small = {"window": 1, "episodes": 1, "intra_layers": 1, "inter_layers": 0} if "encoder_kind" in kind else {}
    networks = networks_for_toy(**(small | kind))

    def trials(**looked_at):
        policy = acting_policy(copy.deepcopy(networks))
        env = toy_grid(K + 2, lanes=3)
        return play_trials(
            ExactPolicy(policy) if exact else policy, env, rules(K, 2, separate=True), trials=4, **looked_at
        )

    expected = trials(look=lambda step, shown: None)
    steps, plain = [], TrialEnv._step
    monkeypatch.setattr(TrialEnv, "_step", lambda env, action: steps.append(1) or plain(env, action))
    received = trials()
    assert not steps
    for key, value in expected.items():
        assert torch.equal(received[key], value), key
    assert len(set(expected["return"].flatten().tolist())) > 4
