"""What a lane remembers depends on its own past alone: no future, no other lane, no trial before."""

import pytest
import torch

from htrmrl_torchrl import EpisodicMemory, keys
from htrmrl_torchrl.memory.strategies import STRATEGIES
from tests.encoders.test_hierarchical import make_encoder, run
from tests.helpers import as_batch, assert_same, differ, record, steps
from tests.replay.test_storage import ragged


def rollout(memory, batch):
    """Contexts without ids, and without caches: how these round depends on how many windows are encoded together."""
    return torch.stack([memory(step)["context"].exclude("past_id", "past_cache").clone() for step in steps(batch)], 1)


def test_the_future_has_no_influence_and_the_seen_past_has():
    recording = record([[[4, 4, 4]]], window=2, episodes=3)
    batch = as_batch(recording)
    before = rollout(EpisodicMemory(window=2, episodes=3, strategy="recent"), batch)
    for t in range(12):
        changed = batch.clone()
        changed[:, t:][keys.OBSERVATION] += 1
        after = rollout(EpisodicMemory(window=2, episodes=3, strategy="recent"), changed)
        assert (after[:, :t] == before[:, :t]).all()
        assert not (after[:, t] == before[:, t]).all()
    changed = batch.clone()
    changed[:, 3][keys.OBSERVATION] += 1  # the last but one token of episode 0
    after = rollout(EpisodicMemory(window=2, episodes=3, strategy="recent"), changed)
    assert differ(after[:, 4:]["past"], before[:, 4:]["past"])


def test_the_deciding_last_reward_is_seen():
    batch = as_batch(record([[[4, 4]]], window=2, episodes=2))
    before = rollout(EpisodicMemory(window=2, episodes=2, strategy="recent"), batch)
    batch[:, 4][keys.FINAL_REWARD] += 1
    after = rollout(EpisodicMemory(window=2, episodes=2, strategy="recent"), batch)
    difference = (after["past"] - before["past"])[0, 4:].abs()
    assert difference[:, 0, -1, -2].eq(1).all() and difference.sum() == 4


@pytest.mark.parametrize("scope", ["trial", "lane"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_other_lanes_have_no_influence(strategy, scope):
    """Neither their steps nor when they reset, not even on what is drawn."""
    lengths = ragged(8)
    recordings = [record([lengths[0], other], window=3, episodes=3) for other in (lengths[1], lengths[2])]
    encoder = make_encoder()
    outs = [
        rollout(
            EpisodicMemory(encoder, strategy=strategy, scope=scope, max_episodes=5),
            as_batch(r, dtype=torch.float64)[:, :40],
        )[0]
        for r in recordings
    ]
    assert (outs[0] == outs[1]).all()
    assert outs[0]["slot_mask"].any()


def test_a_new_trial_forgets_everything():
    """Its contexts are those of a memory that begins with it, on the same stream of draws (recent draws none)."""
    recording = record([[[3, 4, 2], [4, 1, 3]]], window=3, episodes=4)
    batch = as_batch(recording)
    second = batch[:, 9:]
    experienced = rollout(EpisodicMemory(window=3, episodes=4, strategy="recent"), batch)[:, 9:]
    fresh = rollout(EpisodicMemory(window=3, episodes=4, strategy="recent"), second)
    assert (experienced == fresh).all()
    begin = experienced[:, :4]
    assert not begin["slot_mask"].any() and not begin["past"].any() and not begin["past_mask"].any()
    assert experienced["slot_mask"][0, -1].sum() == 2


def test_lanes_that_appear_begin_a_trial_whatever_their_flags():
    recording = record([[[3, 3]]] * 4, window=2, episodes=2)
    batch = as_batch(recording)
    memory = EpisodicMemory(window=2, episodes=2, strategy="recent")
    for step in steps(batch[:2]):
        memory(step)
    out = memory(steps(batch)[4])  # two more lanes, in the middle of an episode
    assert not out[keys.SLOT_MASK].any() and out[keys.CURRENT_MASK].sum(-1).tolist() == [1] * 4


def test_ids_are_equal_for_equal_windows_only_also_over_time():
    """Contexts of several steps may be stacked and encoded together, deduplication and all."""
    encoder = make_encoder()
    recording = record(ragged(9, lanes=2, longest=3), window=3, episodes=3)
    memory = EpisodicMemory(window=3, episodes=3)
    contexts = [memory(step)["context"].clone() for step in steps(as_batch(recording, dtype=torch.float64))]
    stacked = torch.stack(contexts, 1)
    assert_same(run(encoder, stacked), torch.stack([run(encoder, c) for c in contexts], 1), 1e-10)
