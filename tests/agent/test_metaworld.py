"""Meta-World's own evaluator, unchanged, with the adapter: what the agent hears is what happened."""

import metaworld
import numpy as np
import pytest
import torch
from metaworld.evaluation import metalearning_evaluation

from htrmrl_torchrl import HTrMRLAgent, MetaWorldAgent, evaluate
from htrmrl_torchrl.agent.networks import build_networks
from tests.copies import WAYS

HORIZON, LANES = 15, 2


def networks_for_metaworld():
    torch.manual_seed(0)
    return build_networks(
        observation_dim=39, action_low=[-1.0] * 4, action_high=[1.0] * 4, window=2, episodes=3, d_model=8, num_heads=2,
        intra_layers=1, inter_layers=1,
    )  # fmt: skip


class Listening(HTrMRLAgent):
    """Keeps what it receives."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.deterministic, self.received, self.trials = [], [], 0

    def reset(self, mask=None):
        self.trials += 1
        super().reset(mask)

    def act(self, observation, *, deterministic=False):
        self.deterministic.append(deterministic)
        return super().act(observation, deterministic=deterministic)

    def observe(self, reward, terminated, truncated, **keywords):
        self.received.append((np.array(reward), np.array(terminated) | np.array(truncated)))
        super().observe(reward, terminated, truncated, **keywords)


def environments(**changes):
    arguments = {"recurrent_info_in_obs": True, "total_tasks_per_cls": LANES, "max_episode_steps": HORIZON} | changes
    return metaworld.make_ml_envs(
        "reach-v3", seed=0, meta_batch_size=LANES, split="test", task_select="pseudorandom", **arguments
    )


def test_the_official_evaluator_runs_it_and_it_hears_what_happened(monkeypatch):
    envs, agent, happened = environments(), Listening(networks_for_metaworld(), num_envs=LANES), []
    step = envs.step

    def noted(actions):
        result = step(actions)
        happened.append((result[1].copy(), result[2] | result[3]))
        return result

    monkeypatch.setattr(envs, "step", noted)
    success, _, by_task = metalearning_evaluation(
        MetaWorldAgent(agent), envs, num_evals=2, adaptation_episodes=2, evaluation_episodes=2
    )
    assert 0 <= success <= 1 and set(by_task) == {"reach-v3"}
    assert agent.trials == 2
    adapting, evaluating = 2 * HORIZON, HORIZON  # two evaluation episodes of the task: one on each of two lanes
    assert agent.deterministic == 2 * ([False] * adapting + [True] * evaluating)
    assert len(happened) == len(agent.deterministic)
    # The last evaluation step is never passed on: no action follows.
    happened = [happened[i] for i in range(len(happened)) if i % (adapting + evaluating) != adapting + evaluating - 1]
    assert len(agent.received) == len(happened)
    for (reward, ended), (true_reward, true_ended) in zip(agent.received, happened, strict=True):
        np.testing.assert_array_equal(ended, true_ended)
        np.testing.assert_allclose(reward, true_reward, rtol=1e-6)  # the observation is float64, divided by ten


def test_an_evaluation_episode_that_succeeds_ends_and_moves_into_memory(monkeypatch):
    """Three episodes on two lanes: while one is played, another has ended, with a stand-in for its last reward."""
    envs, agent, happened = environments(), Listening(networks_for_metaworld(), num_envs=LANES), []
    step, count = envs.step, 0

    def ends_early(actions):  # as a success would, on lane 0
        nonlocal count
        observation, reward, terminated, truncated, info = step(actions)
        count += 1
        happened.append(reward.copy())
        if count == HORIZON + 4:
            terminated = np.array([True, False])
            observation = np.where(terminated[:, None], envs.envs[0].reset()[0], observation)
            info = {"final_info": {"episode": {"r": np.zeros(2)}, "success": np.zeros(2)}}
        return observation, reward, terminated, truncated, info

    monkeypatch.setattr(envs, "step", ends_early)
    metalearning_evaluation(MetaWorldAgent(agent), envs, num_evals=1, adaptation_episodes=1, evaluation_episodes=2)
    reward, ended = agent.received[HORIZON + 3]
    assert ended.tolist() == [True, False]
    np.testing.assert_allclose(reward, [happened[HORIZON + 2][0], happened[HORIZON + 3][1]], rtol=1e-6)
    assert agent._counter.episode.flatten().tolist() == [2, 1]


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_goes_on_as_the_original_would(way):
    agent, rows = MetaWorldAgent(HTrMRLAgent(networks_for_metaworld(), num_envs=LANES)), np.random.default_rng(0)
    agent.init()
    for t in range(4):  # two episodes of adaptation, then one step that counts, not closed yet
        agent.adapt_action(rows.normal(size=(LANES, 45)))
        ended = np.array([t % 2 == 1] * LANES)
        agent.agent.observe(rows.normal(size=LANES), ended, np.zeros(LANES, dtype=bool))
    agent.reset(np.ones(LANES, dtype=bool))
    observations = rows.normal(size=(4, LANES, 45))
    agent.eval_action(observations[0])
    copied, fresh = WAYS[way](agent), MetaWorldAgent(HTrMRLAgent(agent.agent.networks, num_envs=LANES))
    fresh.init()
    played = [np.stack([one.eval_action(row) for row in observations[1:]]) for one in (agent, copied, fresh)]
    assert np.array_equal(played[0], played[1]) and not np.array_equal(played[0], played[2])


def test_environments_without_recurrent_info_are_refused():
    envs = environments(recurrent_info_in_obs=False)
    agent = MetaWorldAgent(HTrMRLAgent(networks_for_metaworld(), num_envs=LANES))
    with pytest.raises(ValueError, match=r"\[2, 39\] but must be \[2, 39 \+ 6\].*recurrent_info_in_obs=True"):
        metalearning_evaluation(agent, envs, num_evals=1, adaptation_episodes=1)


def test_evaluate_calls_it_and_gives_the_same_report_twice():
    networks = networks_for_metaworld()
    settings = {"protocol": "metaworld", "goals_per_task": 2, "horizon": HORIZON, "adaptation_episodes": 1}
    rng = torch.get_rng_state()
    first, second = (evaluate(networks, "ML1:reach-v3", **settings) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), rng)
    assert first.success.tolist() == second.success.tolist() and first.success.shape == (1, 1, 1)
    assert first.protocol.biased and first.goal.tolist() == [-1] and first.interval() is None
    assert np.isnan(first.returns).all()


@pytest.mark.parametrize(
    ("benchmark", "changes", "message"),
    [
        ("toy", {}, "none of Meta-World's own benchmarks"),
        ("custom:[reach-v3]/[push-v3]", {}, "none of Meta-World's own benchmarks"),
        ("ML1:reach-v3", {"evaluation_actions": "sampled"}, "evaluates the mean action"),
        ("ML1:reach-v3", {"adaptation_episodes": 0}, "at least one episode"),
    ],
)
def test_what_the_official_evaluator_cannot_play(benchmark, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(networks_for_metaworld(), benchmark, protocol="metaworld", **changes)


def test_agents_that_it_cannot_ask():
    with pytest.raises(ValueError, match="Received object for the protocol metaworld, which has no init, adapt_action"):
        evaluate(object(), "ML1:reach-v3", protocol="metaworld")
