"""What is recorded is what was played, and looking at it changes nothing."""

import copy
import itertools

import pytest
import torch

from htrmrl_torchrl import make_env
from htrmrl_torchrl.agent.networks import acting_policy, build_networks
from htrmrl_torchrl.evaluation import play_trials
from htrmrl_torchrl.inspection.recording import record_trials
from htrmrl_torchrl.inspection.retrieval import retrieve
from htrmrl_torchrl.memory.strategies import STRATEGIES
from tests.helpers import assert_same, differ, rules

PAIRS = [(0, goal) for goal in range(4) for _ in range(2)]


def toy(episodes=3, lanes=4):
    return make_env("toy", num_envs=lanes, episodes_per_trial=episodes, pairs=PAIRS)


def networks(kind="htrmrl", seed=0, **settings):
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "episodes": 4, "window": 3, "num_heads": 2} | settings
    return build_networks(observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2, encoder_kind=kind, **sizes)


@pytest.fixture(scope="module")
def played():
    agent = networks()
    return agent, record_trials(agent, toy(), trials=8, every=2, seed=5)


def test_outcomes_are_those_of_an_evaluation_with_sampled_actions(played):
    agent, recording = played
    outcomes = play_trials(acting_policy(agent, seed=5), toy(), rules(2, mean_action=False), trials=8, seed=5)
    assert recording.task.tolist() == [0] * 8 and recording.goal.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(recording.success, outcomes["success"])
    assert_same(recording.returns, outcomes["return"])
    assert recording.success.any() and not recording.success.all()
    steps = outcomes["steps_to_success"]
    assert torch.equal(recording.first_success, torch.where(steps > 0, steps - 1, 6))


def test_shapes_and_steps(played):
    _, recording = played
    assert recording.steps.tolist() == [0, 2, 4, 5] and recording.horizon == 6
    assert recording.hidden.shape == recording.embedding.shape == (8, 3, 4, 16)
    assert recording.window_attention.shape == (8, 3, 4, 2, 2, 3)
    assert recording.slot_attention.shape == (8, 3, 4, 2, 2, 4)
    assert recording.past_embedding.shape == (8, 3, 3, 16)
    assert recording.tokens.shape == (8, 3, 7, 7)
    assert recording.last.slot_attention.shape == (8, 2, 2, 4, 4)
    assert_same(recording.last.hidden, recording.hidden[:, -1, -1])


def test_attention_lies_on_what_was_there(played):
    _, recording = played
    assert recording.window_mask.tolist() == [[False, False, True], [True] * 3, [True] * 3, [True] * 3]
    for attention, mask in (
        (recording.window_attention, recording.window_mask.expand(8, 3, -1, -1)),
        (recording.slot_attention, recording.slot_mask.unsqueeze(2).expand(-1, -1, 4, -1)),
    ):
        assert_same(attention.sum(-1), torch.ones(attention.shape[:-1]))
        assert torch.equal((attention > 0).all(-2).all(-2), mask)


def test_tokens_are_the_steps(played):
    """Each token's reward and action are of the step before, its first flag is set at an episode's beginning."""
    _, recording = played
    tokens = recording.tokens
    assert_same(tokens[:, :, 1:, -2].sum(-1), recording.returns)
    assert tokens[..., -1].tolist() == [[[1.0] + [0.0] * 6] * 3] * 8
    moved = tokens[:, :, 1:, :2] - tokens[:, :, :-1, :2]  # 0.4 * action, but where the disc ends
    inside = tokens[:, :, 1:, :2].norm(dim=-1) < 0.99
    assert_same((0.4 * tokens[:, :, 1:, 3:5])[inside], moved[inside])


def test_windows_are_of_earlier_episodes_and_sorted(played):
    _, recording = played
    assert (recording.slot_episode[:, 0] == -1).all()
    for episode in (1, 2):
        shown = recording.slot_episode[:, episode]
        assert (shown >= 0).all() and (shown < episode).all()  # uniform draws fill all slots
        assert (shown.diff(dim=-1) >= 0).all()
    agent = networks(strategy="recent")
    recent = record_trials(agent, toy(), trials=8, every=6)
    assert recent.slot_episode[0].tolist() == [[-1, -1, -1], [-1, -1, 0], [-1, 0, 1]]
    assert recent.slot_start[0].tolist() == [[-1, -1, -1], [-1, -1, 4], [-1, 4, 4]]


def test_recording_touches_nothing():
    agent, env = networks(), toy()
    torch.manual_seed(3)
    rollout_env = make_env("toy", num_envs=2, episodes_per_trial=2)
    rollout_env.rollout(5, agent.policy, break_when_any_done=False)
    weights, random, memory = copy.deepcopy(agent.actor.state_dict()), torch.get_rng_state(), agent.memory._state
    streams = [copy.deepcopy(rng.bit_generator.state) for rng in memory.streams]
    first = record_trials(agent, env, trials=4, every=3)
    assert torch.equal(torch.get_rng_state(), random) and agent.memory._state is memory
    assert [rng.bit_generator.state for rng in memory.streams] == streams
    assert all(torch.equal(weights[name], value) for name, value in agent.actor.state_dict().items())
    again = record_trials(agent, toy(), trials=4, every=3)
    assert torch.equal(first.hidden, again.hidden)
    assert differ(first.hidden, record_trials(agent, toy(), trials=4, every=3, seed=1).hidden)


@pytest.mark.parametrize("kind", ["trmrl", "rl2", "mlp"])
def test_every_encoder_shows_what_it_has(kind):
    recording = record_trials(networks(kind), toy(), trials=8, every=5)
    assert recording.hidden.shape == (8, 3, 2, 16) and recording.slot_attention is None
    assert recording.slot_episode.shape == (8, 3, 0)
    assert (recording.window_attention is None) == (recording.embedding is None) == (kind != "trmrl")


# ------------------------------------------------------------------------------------------------------- retrieval


@pytest.mark.parametrize("strategy", ["recent", "best_return", "diverse", "similar"])  # those without random draws
def test_the_strategy_that_was_played_is_retrieved_as_it_was(strategy):
    """Windows and attention of the recording come out again, from tokens alone."""
    agent = networks(strategy=strategy)
    recording = record_trials(agent, toy(), trials=8, every=6)
    for trial, episode in itertools.product((0, 5), (1, 2)):
        shown = retrieve(agent.encoder, recording, trial=trial, episode=episode)
        assert set(shown) == set(STRATEGIES)
        held = recording.slot_episode[trial, episode] >= 0
        episodes, starts = recording.slot_episode[trial, episode][held], recording.slot_start[trial, episode][held]
        assert shown[strategy].windows == list(zip(episodes.tolist(), starts.tolist(), strict=True))
        played = recording.slot_attention[trial, episode, -1, -1].mean(0)  # the episode's last decision
        assert_same(shown[strategy].attention, played[-len(shown[strategy].attention) :])
        for name, one in shown.items():
            assert one.attention.shape == (len(one.windows) + 1,), name
            assert_same(one.attention.sum(), torch.tensor(1.0))
            assert all(0 <= e < episode and 0 <= s <= 4 for e, s in one.windows), name
    assert differ(played[-len(shown[strategy].attention) :].flip(0), shown[strategy].attention)  # negative control


def test_nothing_is_retrieved_where_nothing_is_remembered():
    agent = networks("trmrl")
    recording = record_trials(agent, toy(), trials=4, every=6)
    with pytest.raises(ValueError, match="sees only the current window"):
        retrieve(agent.encoder, recording, trial=0, episode=1)


def test_the_final_token_is_in_the_recording(played):
    """An episode's last reward, which is all that the toy tells, is in its last token."""
    _, recording = played
    assert recording.tokens[:, :, -1, -2].abs().min() > 0
    assert not recording.tokens[:, :, :-1, -2].any()


def test_an_environment_without_success_is_refused():
    env = make_env("HalfCheetah-Dir", num_envs=1, episodes_per_trial=2, horizon=3)
    low, high = env.action_spec.low[0].tolist(), env.action_spec.high[0].tolist()
    agent = build_networks(
        observation_dim=env.observation_spec["observation"].shape[-1], action_low=low, action_high=high
    )
    with pytest.raises(ValueError, match="defines no success"):
        record_trials(agent, env, trials=1, every=1)
    env.close()
