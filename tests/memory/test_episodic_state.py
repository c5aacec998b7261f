"""Forgetting, copying, saving and loading what is remembered."""

import copy

import pytest
import torch

from htrmrl_torchrl import EpisodicMemory, keys
from htrmrl_torchrl.memory.strategies import STRATEGIES
from tests.copies import WAYS
from tests.encoders.test_hierarchical import make_encoder, run
from tests.helpers import as_batch, assert_same, differ, record, steps
from tests.replay.test_storage import ragged


def stepwise(memory, batch):
    out = [memory(step) for step in steps(batch)]
    return torch.stack([step.select("window").clone() for step in out], 1)


def test_forgetting_drops_what_was_lived_and_the_streams_go_on():
    recording = record(ragged(11), window=3, episodes=3)
    batch = as_batch(recording)
    forgot, went_on = EpisodicMemory(window=3, episodes=3), EpisodicMemory(window=3, episodes=3)
    first = stepwise(forgot, batch)
    stepwise(went_on, batch)
    forgot.forget()
    again, expected = stepwise(forgot, batch), stepwise(went_on, batch)
    assert torch.equal(again[keys.WINDOW_START], expected[keys.WINDOW_START])
    assert not torch.equal(again[keys.WINDOW_START], first[keys.WINDOW_START])


def test_a_restart_begins_the_streams_again():
    batch = as_batch(record(ragged(11), window=3, episodes=3))
    memory = EpisodicMemory(window=3, episodes=3)
    first = stepwise(memory, batch)
    memory.restart()
    assert (stepwise(memory, batch) == first).all()


def test_a_restored_memory_goes_on_with_streams_and_counters():
    recording = record([[[3, 4, 2]] * 2, [[2, 3, 4]] * 2], window=3, episodes=3)
    batch = as_batch(recording)
    straight = EpisodicMemory(window=3, episodes=3)
    expected = stepwise(straight, batch)[:, 9:]
    saved, loaded = EpisodicMemory(window=3, episodes=3), EpisodicMemory(window=3, episodes=3, seed=5)
    stepwise(saved, batch[:, :9])
    state = saved.checkpoint_state()
    loaded.load_checkpoint_state(copy.deepcopy(state))
    assert loaded.checkpoint_state() == state  # saving again before the first step loses nothing
    assert (stepwise(loaded, batch[:, 9:]) == expected).all()
    assert not (stepwise(EpisodicMemory(window=3, episodes=3), batch[:, 9:]) == expected).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_restored_memory_still_sees_earlier_trials(strategy):
    """What was lived is saved with scope="lane", the last episode included whose end the next step tells."""
    recording = record([[[3, 4, 2]] * 3, [[2, 3, 4]] * 3], window=3, episodes=3)
    batch = as_batch(recording, dtype=torch.float64)

    def make(seed=0):
        return EpisodicMemory(make_encoder(), strategy=strategy, scope="lane", max_episodes=4, seed=seed)

    straight = make()
    expected = stepwise(straight, batch)[:, 18:]
    saved, loaded = make(), make(seed=5)
    stepwise(saved, batch[:, :18])
    state = saved.checkpoint_state()
    assert [len(ended) for ended in state["history"]["ended"]] == [4, 4] and state["history"]["running"] == [2, 4]
    loaded.load_checkpoint_state(copy.deepcopy(state))
    assert loaded.checkpoint_state()["streams"] == state["streams"]
    assert (stepwise(loaded, batch[:, 18:]) == expected).all()
    again, straight_on = loaded.checkpoint_state()["history"], straight.checkpoint_state()["history"]
    assert torch.equal(again.pop("tokens"), straight_on.pop("tokens")) and again == straight_on
    forgot = make()
    forgot.load_checkpoint_state(state)
    forgot.forget()
    unseen = stepwise(forgot, batch[:, 18:])[keys.WINDOW_EPISODE] < 0
    assert unseen.sum() > (expected[keys.WINDOW_EPISODE] < 0).sum()


def play(memory, rows):
    """All that the memory writes along ``rows``."""
    return torch.stack([memory(row.clone()).select("context", "window").clone() for row in rows], 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("strategy", "scope"), [("uniform", "trial"), ("similar", "lane")])
def test_a_copy_goes_on_as_the_original_would(strategy, scope, way):
    """In the middle of episodes and trials: the same windows, tokens, embeddings and draws, and nothing is shared."""

    def make():
        encoder = make_encoder()
        return EpisodicMemory(encoder, strategy=strategy, scope=scope, max_episodes=4 if scope == "lane" else None)

    rows = steps(as_batch(record(ragged(11), window=3, episodes=3), dtype=torch.float64))
    expected = play(make(), rows)
    original = make()
    play(original, rows[:17])
    copied = WAYS[way](original)
    twice = WAYS[way](copied)
    for memory in (copied, original, twice):  # one after the other: none writes into another's past
        assert (play(memory, rows[17:]) == expected[:, 17:]).all()
    fresh = play(make(), rows[17:])
    assert differ(fresh["context", "past"], expected[:, 17:]["context", "past"])


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_a_restored_memory_goes_on_as_the_original_would(way):
    rows = steps(as_batch(record(ragged(11), window=3, episodes=3)))
    saved, original = EpisodicMemory(window=3, episodes=3), EpisodicMemory(window=3, episodes=3, seed=5)
    play(saved, rows)
    original.load_checkpoint_state(saved.checkpoint_state())
    copied = WAYS[way](original)
    assert (play(copied, rows) == play(original, rows)).all()
    assert not (play(EpisodicMemory(window=3, episodes=3, seed=5), rows) == play(original, rows)).all()


@pytest.mark.parametrize("way", WAYS)
def test_the_cache_of_a_copy_follows_the_weights_of_the_copy(way):
    encoder = make_encoder()
    memory, plain = EpisodicMemory(encoder, strategy="recent"), EpisodicMemory(window=3, episodes=3, strategy="recent")
    rows = steps(as_batch(record([[[3, 9]]], window=3, episodes=3), dtype=torch.float64))
    play(memory, rows[:5]), play(plain, rows[:5])
    copied_encoder, copied = WAYS[way]((encoder, memory))
    plain(rows[5].clone())
    untouched, before = memory(rows[5].clone()), play(copied, rows[5:6])
    for parameter in copied_encoder.parameters():
        parameter.data = 1.5 * parameter.data
    context = copied(rows[6].clone())["context"]
    assert_same(run(copied_encoder, context), run(copied_encoder, plain(rows[6].clone())["context"]), 1e-10)
    assert differ(context["past_cache"], before[:, 0]["context", "past_cache"])
    assert torch.equal(memory(rows[6].clone())[keys.PAST_CACHE], untouched[keys.PAST_CACHE])


def test_a_policy_that_moves_to_another_precision_takes_its_past_along():
    """As on its way to another device."""
    rows = steps(as_batch(record(ragged(11), window=3, episodes=3)))
    double = [row.apply(lambda x: x.double() if x.is_floating_point() else x) for row in rows]
    encoder = make_encoder()
    expected = play(EpisodicMemory(encoder, strategy="similar"), double)
    memory = EpisodicMemory(encoder.float(), strategy="similar")
    play(memory, rows[:17])
    encoder.double()
    received = play(memory, double[17:])
    assert (received["window"] == expected[:, 17:]["window"]).all()
    outputs = [run(encoder, out["context"].reshape(-1)) for out in (received, expected[:, 17:])]
    assert_same(*outputs, 1e-6)  # the weights were rounded to float32 on the way


def test_memory_has_no_parameters():
    memory = EpisodicMemory(make_encoder())
    assert not list(memory.parameters()) and not memory.state_dict() and len(list(memory.modules())) == 1
