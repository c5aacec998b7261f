"""The agent outside TorchRL does what the collector's policy does, and says what is wrong with what it is given."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensordict.nn import TensorDictSequential
from torchrl.envs.utils import ExplorationType, set_exploration_type

from htrmrl_torchrl import HTrMRLAgent, keys, make_env
from htrmrl_torchrl.agent.networks import build_networks
from tests.copies import WAYS
from tests.helpers import ACTION, OBSERVATION, assert_same, walking_trials

SIZES = {"window": 3, "episodes": 4, "d_model": 8, "num_heads": 2, "intra_layers": 1, "inter_layers": 2}


def networks_for(observation_dim, action_dim, **choices):
    torch.manual_seed(0)
    bounds = {"action_low": [-1.0] * action_dim, "action_high": [1.0] * action_dim}
    networks = build_networks(observation_dim=observation_dim, **bounds, **(SIZES | choices), seed=7)
    for parameter in networks.actor.parameters():  # initial heads hardly look at what they are given
        parameter.data += 0.2 * torch.randn_like(parameter)
    return networks


def recorded(networks, env, frames):
    """Sampled trajectory of the collector's policy ``[frames]``, with the mean action of every step."""
    # The policy's own memory and actor, which here also leaves its mean.
    policy = TensorDictSequential(networks.memory, networks.actor, selected_out_keys=[keys.ACTION, keys.LOC])
    torch.manual_seed(1)
    now, steps = env.reset(), []
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        for _ in range(frames):
            stepped, now = env.step_and_maybe_reset(policy(now))
            steps.append(stepped.clone())
    return steps


def replay(agent, steps, *, final=True, lanes=slice(None)):
    """Mean actions of the agent along a recorded trajectory."""
    means = []
    for step in steps:
        step = step[lanes]
        if step[keys.TRIAL_INIT].any():
            agent.reset(step[keys.TRIAL_INIT].squeeze(-1).numpy())
        means.append(agent.act(step[keys.OBSERVATION].numpy(), deterministic=True))
        after = step["next"]
        agent.observe(
            after[keys.REWARD].squeeze(-1).numpy(),
            after[keys.TERMINATED].squeeze(-1).numpy(),
            after[keys.TRUNCATED].squeeze(-1).numpy(),
            action=step[keys.ACTION].clamp(-1, 1).numpy(),
            final_observation=after[keys.OBSERVATION].numpy() if final else None,
        )
    return torch.from_numpy(np.stack(means))


def expected_means(steps, lanes=slice(None)):
    return torch.stack([step[keys.LOC][lanes] for step in steps]).clamp(-1, 1)


CHOICES = [{}, {"strategy": "recent"}, {"attention": "full"}, {"observe_token": True}]
CHOICES += [{"encoder_kind": kind} for kind in ("trmrl", "rl2", "mlp")]


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_mean_actions_equal_the_collector_policy_with_staggered_resets(choices):
    networks = networks_for(OBSERVATION, ACTION, **choices)
    steps = recorded(networks, walking_trials(3), frames=60)
    assert len({tuple(step[keys.IS_INIT].flatten().tolist()) for step in steps}) > 4  # they are staggered
    agent = HTrMRLAgent(networks, num_envs=3, seed=7)
    assert torch.equal(replay(agent, steps), expected_means(steps))


def go_on(agent, frames=14):
    """Sampled actions from here on, over the ends of episodes and then in a new trial."""
    torch.manual_seed(3)
    rows, actions = np.random.default_rng(3).normal(size=(frames, agent.num_envs, OBSERVATION + 1)), []
    for t, row in enumerate(rows):
        if t == 10:
            agent.reset()
        actions.append(agent.act(row[:, :-1]))
        ends = np.array([t % 4 == 3] * agent.num_envs)
        agent.observe(row[:, -1], ends, np.zeros_like(ends), final_observation=row[:, :-1] + 1)
    return np.stack(actions)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "choices", [{}, {"max_episodes": 5}, {"encoder_kind": "rl2"}, {"encoder_kind": "mlp"}], ids=str
)
def test_a_copy_goes_on_as_the_original_would(choices, way):
    """Taken in the middle of an episode, and between a decision and what it led to."""
    scope = "lane" if choices.get("max_episodes") else "trial"

    def make():
        agent = HTrMRLAgent(networks_for(OBSERVATION, ACTION, **choices), num_envs=2, scope=scope)
        agent.reset()
        return agent

    agent, fresh = make(), make()
    go_on(agent)
    copied = WAYS[way](agent)
    again = WAYS[way](copied)
    expected = go_on(agent)
    assert np.array_equal(go_on(copied), expected) and np.array_equal(go_on(again), expected)
    remembers = choices.get("encoder_kind") != "mlp"
    assert remembers != np.array_equal(go_on(fresh), expected)  # without memory all agents are alike
    observation = np.ones((2, OBSERVATION))
    agent.act(observation)
    waits = WAYS[way](agent)
    with pytest.raises(RuntimeError, match="act was called twice"):
        waits.act(observation)
    for one in (agent, waits):
        one.observe([1.0, -1.0], [False, True], [False, False], final_observation=observation)
    assert np.array_equal(go_on(waits), go_on(agent))


def test_mean_actions_equal_the_collector_policy_on_the_simulator():
    networks = networks_for(39, 4)
    env = make_env("ML1:reach-v3", num_envs=2, episodes_per_trial=2, horizon=12)
    steps = recorded(networks, env, frames=50)
    env.close()
    assert torch.equal(replay(HTrMRLAgent(networks, num_envs=2, seed=7), steps), expected_means(steps))


def test_one_lane_agrees_with_many_to_float_tolerance():
    networks = networks_for(OBSERVATION, ACTION, strategy="recent")
    steps = recorded(networks, walking_trials(3), frames=60)
    for lane in range(3):
        alone = slice(lane, lane + 1)
        means = replay(HTrMRLAgent(networks), steps, lanes=alone)
        assert_same(means, expected_means(steps, alone))


def test_without_the_final_observation_it_is_nearly_the_same_and_not_quite():
    networks = networks_for(OBSERVATION, ACTION, strategy="recent")
    steps = recorded(networks, walking_trials(3), frames=60)
    without = replay(HTrMRLAgent(networks, num_envs=3, seed=7), steps, final=False)
    first_episode = min(t for t, step in enumerate(steps) if t and step[keys.IS_INIT].any())
    assert torch.equal(without[:first_episode], expected_means(steps)[:first_episode])
    assert not torch.equal(without, expected_means(steps))


def test_a_new_trial_forgets_and_only_on_its_lanes():
    networks = networks_for(OBSERVATION, ACTION, strategy="recent")
    steps = recorded(networks, walking_trials(100), frames=20)
    observation = steps[-1]["next", keys.OBSERVATION]

    def decide(mask):
        agent = HTrMRLAgent(networks, num_envs=3)
        replay(agent, steps)
        if mask is not None:
            agent.reset(mask)
        return agent.act(observation, deterministic=True)

    fresh = HTrMRLAgent(networks, num_envs=3)
    fresh.reset()
    kept, some, forgotten = decide(None), decide([True, False, True]), fresh.act(observation, deterministic=True)
    # To float tolerance: with other lanes' windows in the batch, a matrix product may add in another order.
    assert_same(some[[0, 2]], forgotten[[0, 2]])
    assert_same(some[1], kept[1])
    assert not torch.isclose(kept, forgotten).any()


LANE = {"strategy": "recent", "scope": "lane", "max_episodes": 5}


def test_with_scope_lane_it_equals_the_collector_policy_across_trials():
    networks = networks_for(OBSERVATION, ACTION, **LANE)
    steps = recorded(networks, walking_trials(2), frames=60)
    assert torch.equal(replay(HTrMRLAgent(networks, num_envs=3, seed=7, scope="lane"), steps), expected_means(steps))
    # Unless asked for, another trial is not seen: only each lane's first one is the same.
    forgetful = replay(HTrMRLAgent(networks, num_envs=3, seed=7), steps)
    same = ((forgetful - expected_means(steps)).abs() <= 1e-5).all(-1).T  # [lanes, frames]; means are at most 1
    clamped = (expected_means(steps).abs() == 1).all(-1).T
    second = [[t for t, step in enumerate(steps) if step[keys.TRIAL_INIT][lane]][1] for lane in range(3)]
    for lane, start in enumerate(second):
        assert same[lane, :start].all() and not (same & ~clamped)[lane, start:].any()


@pytest.mark.parametrize("acted", [False, True])
def test_an_episode_that_a_reset_broke_off_is_never_remembered(acted):
    """Neither in mid-episode nor after its first action; what had ended before is."""
    networks = networks_for(OBSERVATION, ACTION, **LANE)
    steps = recorded(networks, walking_trials(100), frames=20)
    observation = steps[-1]["next", keys.OBSERVATION]

    def decide(count, broken):
        agent = HTrMRLAgent(networks, num_envs=3, scope="lane")
        replay(agent, steps[:count])
        if acted:
            agent.act(observation + 1)
        if broken:
            agent.reset()
        return agent, agent.act(observation, deterministic=True)

    agent, after = decide(15, True)
    ended = [agent._memory._state.history.ended(lane) for lane in range(3)]
    begun = torch.stack([step[keys.IS_INIT] for step in steps[:15]]).sum(0).flatten().tolist()
    assert [len(of_lane) for of_lane in ended] == [count - 1 for count in begun]
    assert all(a.counter == b for of_lane in ended for b, a in enumerate(of_lane))
    with pytest.raises(RuntimeError if acted else AssertionError):
        assert torch.equal(decide(15, False)[1], after)


def test_scope_lane_needs_networks_that_say_how_much():
    with pytest.raises(ValueError, match="give max_episodes"):
        HTrMRLAgent(networks_for(OBSERVATION, ACTION), scope="lane")


# ------------------------------------------------------------------------------------------------------ forms


def test_it_answers_in_the_form_it_was_asked_in():
    networks = networks_for(OBSERVATION, ACTION)
    one, two = HTrMRLAgent(networks), HTrMRLAgent(networks, num_envs=2)
    answers = []
    for agent, shape in ((one, (2,)), (one, (1, 2)), (two, (2, 2))):
        for make in (np.zeros, torch.zeros):
            agent.reset()
            action = agent.act(make(shape), deterministic=True)
            assert isinstance(action, np.ndarray) == (make is np.zeros)
            assert action.shape == (*shape[:-1], ACTION) and str(action.dtype).endswith("float32")
            answers.append(action)
    assert_same(answers[1], torch.from_numpy(answers[0]))


def test_it_remembers_the_action_that_its_environment_executes():
    """Sampled and clipped, as if it were told."""
    networks = networks_for(OBSERVATION, ACTION, strategy="recent", init_std=3.0)
    agents, rng, clipped = [HTrMRLAgent(networks, num_envs=3) for _ in range(2)], np.random.default_rng(0), 0
    for agent in agents:
        agent.reset()
    for step in range(20):
        observation, actions = rng.normal(size=(3, OBSERVATION)).astype(np.float32), []
        for agent in agents:
            torch.manual_seed(step)
            actions.append(agent.act(observation))
        assert np.array_equal(*actions)
        clipped += int((np.abs(actions[0]) == 1).sum())
        for agent, told in zip(agents, ({"action": actions[0]}, {}), strict=True):
            agent.observe(np.ones(3), np.full(3, step % 5 == 4), np.zeros(3), **told)
    assert clipped


def test_what_the_caller_writes_into_its_arrays_is_not_remembered():
    agents = [HTrMRLAgent(networks_for(OBSERVATION, ACTION), num_envs=2) for _ in range(2)]
    answers = []
    for agent, spoil in zip(agents, (False, True), strict=True):
        agent.reset()
        torch.manual_seed(0)
        for step in range(6):
            observation = np.full((2, OBSERVATION), 0.1 * step, dtype=np.float32)
            action, reward = agent.act(observation), np.full(2, 0.5, dtype=np.float32)
            answers.append(action.copy())
            if spoil:
                action *= 10
                observation += 7
            agent.observe(reward, [False] * 2, [step == 2] * 2)
            if spoil:
                reward += 9
    assert np.array_equal(answers[:6], answers[6:])


def test_actions_stay_within_the_bounds_and_are_sampled_unless_told_otherwise():
    networks = networks_for(OBSERVATION, ACTION, init_std=5.0)
    agent, actions = HTrMRLAgent(networks, num_envs=2), []
    for deterministic in (False, False, True, True):
        agent.reset()
        actions.append(agent.act(np.zeros((2, OBSERVATION)), deterministic=deterministic))
    assert np.abs(actions).max() <= 1
    assert not np.array_equal(actions[0], actions[1]) and np.array_equal(actions[2], actions[3])


class Falling(gym.Env):
    """Terminates after 3 steps in odd and 5 steps in even episodes; the reward is a tenth of the step."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (ACTION,), np.float32)

    def __init__(self):
        self.episode = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        return self._observation(), 0.1 * self.t, self.t == (3 if self.episode % 2 else 5), False, {}

    def _observation(self):
        return np.array([0.3 * self.episode, 0.2 * self.t], dtype=np.float32)


def test_same_step_and_disabled_autoreset_are_the_same_to_it():
    networks = networks_for(OBSERVATION, ACTION, strategy="recent")

    def play(mode):
        env = SyncVectorEnv([Falling, Falling], autoreset_mode=mode)
        agent = HTrMRLAgent(networks, num_envs=2)
        agent.check_env(env)
        agent.reset()
        observation, _ = env.reset()
        actions = []
        for _ in range(12):
            actions.append(agent.act(observation, deterministic=True))
            observation, reward, terminated, truncated, info = env.step(actions[-1])
            final = info.get("final_obs", observation) if mode is AutoresetMode.SAME_STEP else observation
            agent.observe(reward, terminated, truncated, final_observation=final)
            if mode is AutoresetMode.DISABLED and terminated.any():
                observation, _ = env.reset(options={"reset_mask": terminated | truncated})
        return np.stack(actions)

    same_step, disabled = play(AutoresetMode.SAME_STEP), play(AutoresetMode.DISABLED)
    assert np.array_equal(same_step, disabled)
    assert len(np.unique(same_step.round(6))) > 6  # it does react


def test_a_single_environment_is_played_alike():
    networks = networks_for(OBSERVATION, ACTION)
    env, agent = Falling(), HTrMRLAgent(networks)
    agent.check_env(env)
    agent.reset()
    observation, _ = env.reset()
    for _ in range(12):
        observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
        agent.observe(reward, terminated, truncated, final_observation=observation)
        if terminated:
            observation, _ = env.reset()
    assert int(agent._counter.episode) == 3


# ------------------------------------------------------------------------------------------------------ wrong input


@pytest.fixture
def agent():
    agent = HTrMRLAgent(networks_for(OBSERVATION, ACTION), num_envs=2)
    agent.reset()
    return agent


def test_act_before_reset():
    agent = HTrMRLAgent(networks_for(OBSERVATION, ACTION), num_envs=2)
    with pytest.raises(RuntimeError, match=r"act was called before reset: environments \[0, 1\]"):
        agent.act(np.zeros((2, OBSERVATION)))
    agent.reset([True, False])
    with pytest.raises(RuntimeError, match=r"before reset: environments \[1\]"):
        agent.act(np.zeros((2, OBSERVATION)))


def test_calls_out_of_order(agent):
    with pytest.raises(RuntimeError, match="observe was called without an action"):
        agent.observe(np.zeros(2), np.zeros(2), np.zeros(2))
    agent.act(np.zeros((2, OBSERVATION)))
    with pytest.raises(RuntimeError, match="act was called twice"):
        agent.act(np.zeros((2, OBSERVATION)))
    with pytest.raises(RuntimeError, match="between act and observe"):
        agent.reset([True, False])
    agent.reset()  # giving all up is no mistake
    agent.act(np.zeros((2, OBSERVATION)))


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros((2, 3)), r"observation has shape \[2, 3\] but must be \[2, 2\]"),
        (np.zeros(2), r"observation has shape \[2\] but must be \[2, 2\]"),
        (np.array([[0, 0], [0, np.nan]]), r"observation is not finite in environments \[1\]"),
        (torch.full((2, 2), torch.inf), r"observation is not finite in environments \[0, 1\]"),
    ],
)
def test_wrong_observations(agent, observation, message):
    with pytest.raises(ValueError, match=message):
        agent.act(observation)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward": np.zeros(3)}, r"reward has shape \[3\] but must be \[2\]"),
        ({"reward": 0.0}, r"reward has shape \[\] but must be \[2\]"),
        ({"reward": [0.0, float("nan")]}, r"reward is not finite in environments \[1\]"),
        ({"terminated": [True]}, r"terminated has shape \[1\]"),
        ({"truncated": [[True, True]]}, r"truncated has shape \[1, 2\]"),
        ({"action": np.zeros((2, 3))}, r"action has shape \[2, 3\] but must be \[2, 1\]"),
        ({"final_observation": np.zeros((2, 5))}, r"final_observation has shape \[2, 5\]"),
        ({"final_observation": np.full((2, 2), np.nan)}, r"final_observation is not finite in environments \[0\]"),
        ({"final_observation": np.array([None, np.zeros(2)], dtype=object)}, "None where an episode has ended"),
    ],
)
def test_wrong_outcomes(agent, arguments, message):
    agent.act(np.zeros((2, OBSERVATION)))
    with pytest.raises(ValueError, match=message):
        agent.observe(**({"reward": np.zeros(2), "terminated": [True, False], "truncated": [False] * 2} | arguments))
    agent.observe(np.zeros(2), [True, False], [False, False])  # nothing was lost by the refusal


def test_wrong_masks(agent):
    with pytest.raises(ValueError, match=r"mask has shape \[3\] but must be \[2\]"):
        agent.reset([True] * 3)


@pytest.mark.parametrize("lanes", [0, 2.0, True])
def test_wrong_numbers_of_lanes(lanes):
    with pytest.raises(ValueError, match="num_envs"):
        HTrMRLAgent(networks_for(OBSERVATION, ACTION), num_envs=lanes)


def test_environments_that_it_cannot_play(agent):
    with pytest.raises(ValueError, match=r"NEXT_STEP.*SAME_STEP or DISABLED"):
        agent.check_env(SyncVectorEnv([Falling] * 2, autoreset_mode=AutoresetMode.NEXT_STEP))
    with pytest.raises(ValueError, match="has num_envs=3, the agent 2"):
        agent.check_env(SyncVectorEnv([Falling] * 3, autoreset_mode=AutoresetMode.SAME_STEP))
    one = HTrMRLAgent(networks_for(3, 2))
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"actions have shape \(1,\).*trained with \(2,\)"):
        warnings.simplefilter("ignore")
        one.check_env(gym.make("Pendulum-v1"))
    with pytest.raises(ValueError, match=r"observations have shape \(2,\).*trained with \(3,\)"):
        one.check_env(Falling())
    agent.check_env(SyncVectorEnv([Falling] * 2, autoreset_mode=AutoresetMode.DISABLED))
