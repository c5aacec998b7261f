"""Minibatches: every frame once an epoch, tasks in equal numbers, segments whole."""

from collections import Counter

import pytest
import torch
from torchrl.data import LazyTensorStorage

from htrmrl_torchrl import EpisodicReplayBuffer, EpisodicStorage, keys
from tests.helpers import as_batch, assert_context, record
from tests.replay.test_storage import make_buffer, ragged


def epoch(buffer):
    return list(buffer)


def test_each_frame_comes_exactly_once_an_epoch_in_another_order_each_time():
    recording = record([[[6, 6]]] * 4, window=2, episodes=2)
    buffer = make_buffer(recording, batch_size=12, segment_frames=3)
    buffer.extend(as_batch(recording))
    orders = []
    for _ in range(3):
        minibatches = epoch(buffer)
        assert [m.shape for m in minibatches] == [torch.Size([4, 3])] * 4
        orders.append(torch.cat([m["frame"].flatten() for m in minibatches]).tolist())
        assert sorted(orders[-1]) == sorted(as_batch(recording)["frame"].flatten().tolist())
    assert len(set(map(tuple, orders))) == 3


def test_a_segment_is_consecutive_frames_of_one_episode():
    recording = record([[[6, 6]]] * 4, window=2, episodes=2)
    buffer = make_buffer(recording, batch_size=12, segment_frames=3)
    buffer.extend(as_batch(recording))
    for minibatch in buffer:
        for segment in minibatch["frame"].squeeze(-1).tolist():
            assert segment == list(range(segment[0], segment[0] + 3))
            assert segment[0] % 1000 % 6 in (0, 3)


def test_tasks_are_equally_many_in_each_minibatch():
    recording = record([[[6, 6]]] * 6, window=2, episodes=2)
    buffer = make_buffer(recording, batch_size=18, segment_frames=3)
    buffer.extend(as_batch(recording, tasks=[0, 1, 2, 2, 1, 0]))
    for _ in range(5):
        for minibatch in epoch(buffer):
            assert Counter(minibatch[keys.TASK].flatten().tolist()) == {0: 6, 1: 6, 2: 6}


def test_tasks_of_unequal_size_are_spread_in_proportion():
    recording = record([[[6, 6]]] * 4, window=2, episodes=2)
    buffer = make_buffer(recording, batch_size=12, segment_frames=3)
    buffer.extend(as_batch(recording, tasks=[5, 5, 5, 9]))  # 12 and 4 segments, 4 a minibatch
    for minibatch in epoch(buffer):
        assert Counter(minibatch[keys.TASK][:, 0].flatten().tolist()) == {5: 3, 9: 1}


@pytest.mark.parametrize("seed", range(2))
def test_ragged_episodes_give_flat_minibatches_with_the_right_contexts(seed):
    recording = record(ragged(seed), window=3, episodes=3, seed=seed)
    buffer = make_buffer(recording, batch_size=20, segment_frames=4)
    seen = []
    for begin, end in ((0, 25), (25, 40)):
        buffer.empty()
        buffer.extend(as_batch(recording, begin, end))
        of_epoch = []
        for minibatch in buffer:
            flat = minibatch.reshape(-1)
            of_epoch += flat["frame"].flatten().tolist()
            for row in flat:
                lane, frame = divmod(row["frame"].item(), 1000)
                assert_context(row["context"], recording.context(lane, frame))
        assert sorted(of_epoch) == sorted(as_batch(recording, begin, end)["frame"].flatten().tolist())
        seen += of_epoch
    assert len(seen) == len(set(seen)) == 120  # context-only frames are never trained on again


def test_columns_are_assigned_where_frames_stand():
    """Also in a second batch, when the storage has the column already and holds context-only frames."""
    recording = record([[[5, 5, 5, 5]], [[4, 3, 4], [4, 5]]], window=2, episodes=2)
    buffer = make_buffer(recording, batch_size=4)
    for begin, end in ((0, 9), (9, 20)):
        buffer.empty()
        batch = as_batch(recording, begin, end)
        frames = buffer.extend(batch)
        if begin:
            for minibatch in buffer:  # what the batch before was given is not taken for this one's
                assert keys.ADVANTAGE not in minibatch.keys() or not minibatch[keys.ADVANTAGE].any()
        buffer.assign(frames, batch.select().set(keys.ADVANTAGE, batch["frame"] * 2.0 + 1))
        for minibatch in buffer:
            assert torch.equal(minibatch[keys.ADVANTAGE], minibatch["frame"] * 2.0 + 1)


def test_a_broken_off_epoch_does_not_reach_into_the_next_batch():
    recording = record([[[6, 6]]] * 2, window=2, episodes=2)
    buffer = make_buffer(recording, batch_size=6, segment_frames=3)
    buffer.extend(as_batch(recording, 0, 6))
    next(iter(buffer))
    buffer.empty()
    buffer.extend(as_batch(recording, 6, 12))
    frames = torch.cat([m["frame"].flatten() for m in buffer])
    assert sorted(frames.tolist()) == sorted(as_batch(recording, 6, 12)["frame"].flatten().tolist())


def test_samples_do_not_change_with_the_order_they_came_in_but_with_the_seed():
    recording = record([[[6, 6]]] * 2, window=2, episodes=2)
    drawn = []
    for seed in (0, 0, 1):
        buffer = make_buffer(recording, batch_size=6, segment_frames=3)
        buffer.extend(as_batch(recording))
        torch.manual_seed(seed)
        drawn.append(torch.cat([m["frame"].flatten() for m in buffer]).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("batch_size,segment_frames", [(10, 3), (0, 1), (4, 0), (2, 4)])
def test_minibatches_that_are_not_whole_segments_are_refused(batch_size, segment_frames):
    with pytest.raises(ValueError, match=rf"batch_size={batch_size} must be .* segment_frames={segment_frames}"):
        EpisodicReplayBuffer(
            storage=EpisodicStorage(10, window=1, episodes=1), batch_size=batch_size, segment_frames=segment_frames
        )


def test_a_sample_of_another_size_must_be_whole_segments_too():
    recording = record([[[6]]], window=2, episodes=2)
    buffer = make_buffer(recording, batch_size=6, segment_frames=3)
    buffer.extend(as_batch(recording))
    with pytest.raises(ValueError, match=r"minibatch of 4 frames is not a whole number of segments of 3"):
        buffer.sample(4)


def test_another_storage_is_refused():
    with pytest.raises(ValueError, match=r"needs an EpisodicStorage; received LazyTensorStorage"):
        EpisodicReplayBuffer(storage=LazyTensorStorage(10), batch_size=2)
