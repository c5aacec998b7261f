"""Forgetting, copying, saving and loading what is remembered."""

import copy
import pickle

import pytest
import torch

from htrmrl_torchrl import EpisodicMemory, keys
from htrmrl_torchrl.data.strategies import STRATEGIES
from tests.data.test_storage import ragged
from tests.helpers import as_batch, record, steps
from tests.modules.test_encoder import make_encoder
from tests.modules.test_memory_leaks import rollout


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


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda memory: pickle.loads(pickle.dumps(memory))])
def test_copies_are_empty(duplicate):
    recording = record(ragged(11), window=3, episodes=3)
    memory = EpisodicMemory(window=3, episodes=3)
    stepwise(memory, as_batch(recording))
    expected = rollout(EpisodicMemory(window=3, episodes=3), as_batch(recording))
    assert (rollout(duplicate(memory), as_batch(recording)) == expected).all()


def test_a_copy_carries_no_experience():
    small, large = EpisodicMemory(window=3, episodes=3), EpisodicMemory(window=3, episodes=3)
    stepwise(large, as_batch(record(ragged(11), window=3, episodes=3)))
    assert len(pickle.dumps(large)) < len(pickle.dumps(small)) + 1000


def test_memory_has_no_parameters():
    memory = EpisodicMemory(make_encoder())
    assert not list(memory.parameters()) and not memory.state_dict() and len(list(memory.modules())) == 1
