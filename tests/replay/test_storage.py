"""Contexts gathered by index equal those of the reference; frames are stored once."""

import random

import pytest
import torch

from htrmrl_torchrl import EpisodicReplayBuffer, EpisodicStorage, keys
from tests.helpers import OBSERVATION, TOKEN, as_batch, assert_context, record


def make_buffer(recording, size=400, batch_size=4, segment_frames=1):
    storage = EpisodicStorage(
        size,
        window=recording.window,
        episodes=recording.episodes,
        scope=recording.scope,
        max_episodes=recording.max_episodes,
    )
    return EpisodicReplayBuffer(storage=storage, batch_size=batch_size, segment_frames=segment_frames)


def ragged(seed, *, lanes=3, frames=40, longest=6):
    """Lengths of random trials that fill at least ``frames`` frames of each lane."""
    rng = random.Random(seed)
    lengths = []
    for _ in range(lanes):
        lengths.append([])
        while sum(map(sum, lengths[-1])) < frames:
            lengths[-1].append([rng.randint(1, longest) for _ in range(rng.randint(1, 5))])
    return lengths


def check_contexts(buffer, recording, frames, begin):
    """Contexts of frames ``begin ...`` of all lanes, stored at rows ``frames``."""
    contexts = buffer.storage.contexts(frames.flatten()).view(frames.shape)
    for lane in range(frames.shape[0]):
        for t in range(frames.shape[1]):
            assert_context(contexts[lane, t], recording.context(lane, begin + t))


@pytest.mark.parametrize("window,episodes", [(1, 1), (1, 3), (4, 1), (3, 4)])
@pytest.mark.parametrize("seed", range(2))
def test_contexts_of_whole_lanes_equal_the_reference(seed, window, episodes):
    recording = record(ragged(seed), window=window, episodes=episodes, seed=seed)
    buffer = make_buffer(recording)
    check_contexts(buffer, recording, buffer.extend(as_batch(recording)), 0)


@pytest.mark.parametrize("emptied", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_contexts_of_trials_cut_by_batches_equal_the_reference(seed, emptied):
    """Cuts fall within episodes, between episodes and between trials, differently in each lane."""
    recording = record(ragged(seed), window=3, episodes=4, seed=seed)
    buffer = make_buffer(recording)
    for begin, end in ((0, 9), (9, 10), (10, 23), (23, 40)):
        batch = as_batch(recording, begin, end)
        if emptied:
            buffer.empty()
        frames = buffer.extend(batch)
        check_contexts(buffer, recording, frames, begin)
        # The rows that were returned are those of the batch, although context-only frames stand between them.
        assert torch.equal(buffer.storage.get(slice(0, len(buffer)))["frame"][frames], batch["frame"])


SCOPED = [("trial", 2), ("lane", 1), ("lane", 3), ("lane", 100)]


@pytest.mark.parametrize(("scope", "max_episodes"), SCOPED)
@pytest.mark.parametrize("seed", range(2))
def test_contexts_of_remembered_trials_equal_the_reference(seed, scope, max_episodes):
    """Whatever the cuts, what may be drawn is there, and nothing else stays beside the batch."""
    recording = record(ragged(seed), window=3, episodes=4, seed=seed, scope=scope, max_episodes=max_episodes)
    buffer = make_buffer(recording)
    for begin, end in ((0, 9), (9, 10), (10, 23), (23, 40)):
        buffer.empty()
        frames = buffer.extend(as_batch(recording, begin, end))
        check_contexts(buffer, recording, frames, begin)
        expected = 0
        for lane in range(3):
            at = recording.steps[lane][begin]
            lived = sum(len(past.rewards) for past in recording.visible(lane, at.n, at.k))
            expected += lived + at.t + (end - begin)
        if scope == "lane":
            assert len(buffer) == expected
        assert len(buffer) - 3 * (end - begin) <= expected  # a new trial sees nothing of what may still be here
        contexts, last = buffer.storage.final_contexts()
        assert set(last.tolist()) <= set(frames.flatten().tolist())
        assert contexts.batch_size == last.shape


def test_what_later_trials_may_see_is_saved_and_restored():
    """The storage of a resumed run shows the contexts of one that went on, and keeps nothing else."""
    lengths = [[[3, 4, 2]] * 3, [[2, 3, 4]] * 3]
    recording = record(lengths, window=3, episodes=4, scope="lane", max_episodes=4)
    went_on, resumed = make_buffer(recording), make_buffer(recording)
    for begin, end in ((0, 9), (9, 18)):
        went_on.empty()
        frames = went_on.extend(as_batch(recording, begin, end))
        went_on.assign(frames, as_batch(recording, begin, end).select().set(keys.ADVANTAGE, torch.ones(2, 9, 1)))
        state = went_on.storage.checkpoint_state()
    assert state["frames"].tolist() == [2, 3, 4, 2, 4, 2, 3, 4] and state["counter"].tolist() == [2, 3, 4, 5] * 2
    assert state["tokens"].shape == (24 + 8, TOKEN)
    resumed.storage.load_checkpoint_state(state)
    went_on.empty()
    for buffer in (went_on, resumed):
        frames = buffer.extend(as_batch(recording, 18, 27))
        check_contexts(buffer, recording, frames, 18)
        assert len(buffer) == 24 + 18
        seen = torch.cat([minibatch["frame"].flatten() for minibatch in buffer])
        assert sorted(seen.tolist()) == sorted(as_batch(recording, 18, 27)["frame"].flatten().tolist())
    forgot = make_buffer(recording)
    frames = forgot.extend(as_batch(recording, 18, 27))
    with pytest.raises(ValueError, match="not in the storage"):
        check_contexts(forgot, recording, frames, 18)


def test_emptied_or_not_the_same_is_saved():
    recording = record([[[3, 4]] * 2], window=3, episodes=4, scope="lane", max_episodes=3)
    buffer = make_buffer(recording)
    assert buffer.storage.checkpoint_state() == {}
    buffer.extend(as_batch(recording))
    before = buffer.storage.checkpoint_state()
    buffer.empty()
    after = buffer.storage.checkpoint_state()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    other = make_buffer(recording)
    other.storage.load_checkpoint_state(before)
    again = other.storage.checkpoint_state()
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_with_scope_trial_nothing_is_saved():
    recording = record([[[3, 4]] * 2], window=3, episodes=4)
    buffer = make_buffer(recording)
    buffer.extend(as_batch(recording))
    assert buffer.storage.checkpoint_state() == {}


def test_the_contexts_of_cut_trials_need_what_came_before():
    """Negative control: with other windows, or the wrong seed of the steps, the comparison fails."""
    recording = record(ragged(0), window=3, episodes=4, seed=0)
    other = record(ragged(0), window=3, episodes=4, seed=1)
    buffer = make_buffer(recording)
    frames = buffer.extend(as_batch(recording))
    with pytest.raises(AssertionError):
        check_contexts(buffer, other, frames, 0)


@pytest.mark.parametrize("seed", range(2))
def test_final_contexts_equal_the_reference(seed):
    recording = record(ragged(seed), window=3, episodes=4, seed=seed)
    buffer = make_buffer(recording)
    seen = 0
    for begin, end in ((0, 17), (17, 40)):
        buffer.empty()
        frames = buffer.extend(as_batch(recording, begin, end))
        contexts, last = buffer.storage.final_contexts()
        where = {int(row): (lane, begin + t) for lane, of_lane in enumerate(frames) for t, row in enumerate(of_lane)}
        for context, row in zip(contexts, last.tolist(), strict=True):
            if row in where:  # others end in frames that are context only
                lane, frame = where[row]
                assert_context(context, recording.context(lane, frame, after=True))
                seen += 1
        # Each episode that ends in the batch, and the one that the batch cuts, has one.
        for lane, of_lane in enumerate(frames):
            for t, row in enumerate(of_lane.tolist()):
                cut = t + 1 == len(of_lane)
                ends = (
                    recording.steps[lane][begin + t + 1].t == 0 if begin + t + 1 < len(recording.steps[lane]) else True
                )
                assert (row in last.tolist()) == (cut or ends)
    assert seen > 20


def test_segments_share_one_past_without_a_copy():
    recording = record([[[4, 4, 4]]], window=2, episodes=3)
    buffer = make_buffer(recording)
    frames = buffer.extend(as_batch(recording)).view(3, 4)
    shared = buffer.storage.contexts(frames)
    flat = buffer.storage.contexts(frames.flatten()).view(3, 4)
    assert (shared == flat).all()
    assert shared["past"].stride(1) == 0


# ------------------------------------------------------------------------------------------------------ stored once


def stored_bytes(storage):
    tensors = [*storage.get(slice(0, len(storage))).values(True, True), storage.tokens, storage.episode_of_frame]
    return sum(x.numel() * x.element_size() for x in [*tensors, *storage.table.values(True, True)])


def full(window, episodes, episode_count=4):
    recording = record([[[5] * episode_count]] * 2, window=window, episodes=episodes, draw=lambda tokens: [])
    buffer = make_buffer(recording)
    buffer.extend(as_batch(recording))
    return buffer.storage


def test_memory_is_linear_in_frames_whatever_the_window_and_the_slots():
    assert stored_bytes(full(1, 3)) == stored_bytes(full(64, 3))
    # A slot costs its two integer keys, 16 bytes a frame.
    assert stored_bytes(full(5, 21)) - stored_bytes(full(5, 1)) == 40 * 20 * 16
    assert stored_bytes(full(5, 3, episode_count=8)) == 2 * stored_bytes(full(5, 3))
    assert 40 * 20 * TOKEN * 4 > 40 * 20 * 16  # what keeping windows of one token would add


def test_each_token_is_stored_once():
    storage = full(5, 3)
    assert storage.tokens.shape == (40 + 8, TOKEN)  # 40 frames, 8 episodes with a final token each
    columns = list(storage.get(slice(0, 40)).keys(True, True))
    assert not {keys.OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, "next", keys.CONTEXT} & {
        key if isinstance(key, str) else key[0] for key in columns
    }
    values = storage.tokens[:, :OBSERVATION].flatten().tolist()
    assert len(set(values)) == len(values)


# ------------------------------------------------------------------------------------------------ what may go wrong


def test_more_frames_than_fit_are_refused_and_change_nothing():
    recording = record([[[5, 5], [5, 5]]], window=2, episodes=2)
    buffer = make_buffer(recording, size=12)
    frames = buffer.extend(as_batch(recording, 0, 10))
    with pytest.raises(ValueError, match=r"20 frames .* do not fit into max_size=12\. Call empty\(\)"):
        buffer.extend(as_batch(recording, 10, 20))
    check_contexts(buffer, recording, frames, 0)
    buffer.empty()
    check_contexts(buffer, recording, buffer.extend(as_batch(recording, 10, 20)), 10)


def test_context_of_open_trials_counts_towards_the_size():
    recording = record([[[5, 5, 5]]], window=2, episodes=2)
    buffer = make_buffer(recording, size=12)
    buffer.extend(as_batch(recording, 0, 10))
    buffer.empty()
    with pytest.raises(ValueError, match=r"15 frames \(context of unfinished trials included\).*max_size=12"):
        buffer.extend(as_batch(recording, 10, 15))


@pytest.mark.parametrize("key", [keys.IS_INIT, keys.TRIAL_INIT, keys.WINDOW_CURRENT])
def test_a_batch_without_trial_flags_is_refused(key):
    recording = record([[[3]]], window=2, episodes=2)
    with pytest.raises(ValueError, match=r"lacks .*EpisodicMemory.*TrialTransform"):
        make_buffer(recording).extend(as_batch(recording).exclude(key))


def test_one_lane_may_come_without_a_lane_axis():
    recording = record([[[3, 2, 4]]], window=2, episodes=2)
    buffer = make_buffer(recording)
    for begin, end in ((0, 4), (4, 9)):
        buffer.empty()
        frames = buffer.extend(as_batch(recording, begin, end)[0])
        assert frames.shape == (end - begin,)
        check_contexts(buffer, recording, frames.unsqueeze(0), begin)


def test_a_batch_with_more_axes_is_refused():
    recording = record([[[3]]], window=2, episodes=2)
    with pytest.raises(ValueError, match=r"must be \[N, T\], one row per environment, or \[T\]; received \[1, 1, 3\]"):
        make_buffer(recording).extend(as_batch(recording).unsqueeze(0))


def test_a_skipped_batch_is_noticed():
    recording = record(
        [[[3, 3, 3]]], window=2, episodes=2, draw=lambda tokens: [(len(tokens) - 1, 0)] if tokens else []
    )
    buffer = make_buffer(recording)
    frames = buffer.extend(as_batch(recording, 3, 9))
    with pytest.raises(ValueError, match=r"refers to an episode that is not in the storage"):
        buffer.storage.contexts(frames[0, :1])
    assert buffer.storage.contexts(frames[0, 3:4]).shape == (1,)  # this one's past is here


def test_a_skipped_batch_is_noticed_although_another_lane_has_an_episode_of_that_number():
    """Lane 1's episode 0 is missing, and the row before lane 1's first one is lane 0's episode 0."""
    lengths = [[[3], [1] * 3], [[1] * 3, [3]]]
    recording = record(lengths, window=2, episodes=2, draw=lambda tokens: [(0, 0)] if tokens else [])
    batch = as_batch(recording)
    batch = torch.stack([batch[0, :3], batch[1, 1:4]])
    assert batch[keys.WINDOW_EPISODE].flatten().tolist() == [-1, -1, -1, 0, 0, -1]
    buffer = make_buffer(recording)
    frames = buffer.extend(batch)
    with pytest.raises(ValueError, match=r"refers to an episode that is not in the storage"):
        buffer.storage.contexts(frames[1, :1])


@pytest.mark.parametrize(("begin", "end", "later"), [(2, 9, None), (0, 3, 7)])
def test_missing_frames_are_refused(begin, end, later):
    """A lane that begins inside an episode, or goes on in another one than it left."""
    recording = record([[[6, 3]]], window=4, episodes=1)
    buffer = make_buffer(recording)
    if later is not None:
        buffer.extend(as_batch(recording, begin, end))
        begin, end = later, 9
    with pytest.raises(ValueError, match="Frames are missing"):
        buffer.extend(as_batch(recording, begin, end))


def test_an_unknown_scope_is_refused():
    with pytest.raises(ValueError, match=r"'task' is unknown; choose one of trial, lane"):
        EpisodicStorage(10, window=2, episodes=2, scope="task")
    with pytest.raises(ValueError, match="give max_episodes"):
        EpisodicStorage(10, window=2, episodes=2, scope="lane")


@pytest.mark.parametrize("sizes", [{"window": 0, "episodes": 2}, {"window": 2, "episodes": 0}])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match=r"window=\d and episodes=\d must be at least 1"):
        EpisodicStorage(10, **sizes)
