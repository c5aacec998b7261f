"""RL2's encoder and memory show what a loop over GRU cells shows, in rollouts and rebuilt from storage, and forget."""

import pytest
import torch
from tensordict import TensorDict

from htrmrl_torchrl import EpisodicReplayBuffer, EpisodicStorage, RecurrentEncoder, RecurrentMemory, keys
from tests.copies import WAYS
from tests.helpers import ACTION, OBSERVATION, as_batch, assert_same, differ, record, steps
from tests.reference import recurrent_states
from tests.replay.test_storage import ragged

STATE = (keys.RECURRENT, "state")


def make_encoder(*, seed=0, **choices):
    torch.manual_seed(seed)
    encoder = RecurrentEncoder(observation_dim=OBSERVATION, action_dim=ACTION, d_model=6, **choices).double()
    for parameter in encoder.parameters():  # biases too
        parameter.data += 0.3 * torch.randn_like(parameter)
    return encoder


def lived(encoder, recording, begin=0, end=None, memory=None):
    """A batch with what the memory writes, and its contexts, each ``[N, T]``."""
    memory = memory or RecurrentMemory(encoder)
    batch = as_batch(recording, begin, end, dtype=torch.float64)
    out = torch.stack([memory(step) for step in steps(batch)], 1)
    batch.update(out.select(keys.RECURRENT, keys.WINDOW_EPISODE, keys.WINDOW_START, keys.WINDOW_CURRENT))
    return batch, out[keys.CONTEXT]


def expected_states(encoder, recording, begin=0, end=None, reward_scale=1.0):
    """The reference's state after each frame, ``[N, T, D]``."""
    rows = []
    for trials, of_lane in zip(recording.trials, recording.steps, strict=True):
        states = [recurrent_states(encoder, trial, reward_scale) for trial in trials]
        rows.append([states[at.n][at.k][at.t] for at in of_lane[begin:end]])
    shortest = min(map(len, rows))
    return torch.stack([torch.stack(row[:shortest]) for row in rows]).detach()


def hidden_of(encoder, context):
    return encoder(TensorDict(context=context, batch_size=context.batch_size))[keys.HIDDEN]


def make_buffer(size=400, **sizes):
    return EpisodicReplayBuffer(storage=EpisodicStorage(size, window=1, episodes=1), **sizes)


# ------------------------------------------------------------------------------------------------------- the oracle


@pytest.mark.parametrize("choices", [{}, {"mlp_layers": 1}, {"reward_scale": 0.25}])
@pytest.mark.parametrize("seed", range(2))
@torch.no_grad()
def test_states_along_a_rollout_equal_the_reference(seed, choices):
    """Lanes reset at different steps; the state is carried over episodes, with the last action and reward."""
    recording, encoder = record(ragged(seed), window=1, episodes=1, seed=seed), make_encoder(seed=seed, **choices)
    batch, contexts = lived(encoder, recording)
    expected = expected_states(encoder, recording, reward_scale=choices.get("reward_scale", 1.0))
    assert_same(batch[STATE], expected, 1e-10)
    assert_same(hidden_of(encoder, contexts), expected, 1e-10)
    # Without what the memory has computed, the encoder computes the same.
    assert_same(hidden_of(encoder, contexts.exclude("after").reshape(-1)), expected.flatten(0, 1), 1e-10)
    assert differ(expected[:, 1:], expected[:, :-1])


@pytest.mark.parametrize("segment_frames", [1, 3, 50])
@pytest.mark.parametrize("seed", range(2))
@torch.no_grad()
def test_segments_from_storage_equal_the_reference_also_where_batches_cut_trials(seed, segment_frames):
    recording, encoder = record(ragged(seed), window=1, episodes=1, seed=seed), make_encoder(seed=seed)
    memory = RecurrentMemory(encoder)
    buffer = make_buffer(batch_size=50 * segment_frames, segment_frames=segment_frames)
    for begin, end in ((0, 9), (9, 10), (10, 23), (23, 40)):
        batch, _ = lived(encoder, recording, begin, end, memory)
        buffer.empty()
        frames = buffer.extend(batch)
        expected = expected_states(encoder, recording, begin, end)
        assert_same(hidden_of(encoder, buffer.storage.contexts(frames)), expected, 1e-10)
        seen = []
        for minibatch in buffer:
            flat = minibatch.reshape(-1)
            lane, frame = (flat["frame"] // 1000).flatten(), (flat["frame"] % 1000).flatten()
            assert_same(hidden_of(encoder, minibatch["context"]).flatten(0, -2), expected[lane, frame - begin], 1e-10)
            seen += flat["frame"].flatten().tolist()
        assert sorted(seen) == sorted(batch["frame"].flatten().tolist())


@torch.no_grad()
def test_equal_segments_of_whole_trials_keep_their_shape():
    recording, encoder = record([[[4, 4, 4]] * 2] * 2, window=1, episodes=1), make_encoder()
    buffer = make_buffer(batch_size=24, segment_frames=12)
    batch, _ = lived(encoder, recording)
    buffer.extend(batch)
    for minibatch in buffer:
        assert minibatch.batch_size == (2, 12)
        assert minibatch[keys.SEQUENCE_START].squeeze(-1).tolist() == [[True] + [False] * 11] * 2
        assert_same(hidden_of(encoder, minibatch["context"]), minibatch[STATE], 1e-10)


@torch.no_grad()
def test_final_contexts_equal_the_reference():
    recording, encoder = record(ragged(3), window=1, episodes=1), make_encoder()
    memory, buffer = RecurrentMemory(encoder), make_buffer(batch_size=1)
    for begin, end in ((0, 15), (15, 40)):
        batch, _ = lived(encoder, recording, begin, end, memory)
        buffer.empty()
        buffer.extend(batch)
    contexts, last = buffer.storage.final_contexts()
    values = hidden_of(encoder, contexts)
    stored = buffer.storage.get(slice(0, len(buffer)))["frame"]
    compared = 0
    for row, state in zip(last.tolist(), values, strict=True):
        lane, frame = divmod(stored[row].item(), 1000)
        at = recording.steps[lane][frame]
        states = recurrent_states(encoder, recording.trials[lane][at.n])[at.k]
        assert_same(state, states[at.t + 1].detach(), 1e-10)  # after x_H, or what the batch's last step led to
        compared += 1
    trained_on = buffer.storage.table["trainable"] > 0  # what is only context needs no values
    assert compared == trained_on.sum() > 10


# ------------------------------------------------------------------------------------------- truncated gradients


def gradient_of_inputs(frames, *, starts=None):
    """d (sum of the last state) / d (each token) for one lane of two episodes of three steps."""
    recording, encoder = record([[[3, 3]]], window=1, episodes=1), make_encoder()
    buffer = make_buffer(batch_size=1)
    batch, _ = lived(encoder, recording)
    buffer.extend(batch)
    context = buffer.storage.contexts(frames, starts)
    token = context["current"].clone().requires_grad_()
    hidden_of(encoder, context.clone().set("current", token)).flatten(0, -2)[-1].sum().backward()
    return token.grad.abs().sum((-1, -2)).flatten()


def test_gradients_pass_within_a_segment_across_episodes_and_not_beyond_its_start():
    frames = torch.arange(6)
    assert (gradient_of_inputs(frames) > 0).all()
    assert ((gradient_of_inputs(frames.view(2, 3)) > 0) == torch.tensor([False] * 3 + [True] * 3)).all()
    starts = torch.tensor([True, False, True, False, True, False])
    assert ((gradient_of_inputs(frames, starts=starts) > 0) == torch.tensor([False] * 4 + [True] * 2)).all()


def test_a_segment_starts_from_the_state_that_acted_whatever_the_weights_are_now():
    recording, encoder = record([[[3, 3]]], window=1, episodes=1), make_encoder()
    buffer = make_buffer(batch_size=1)
    batch, _ = lived(encoder, recording)
    buffer.extend(batch)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1
    before = buffer.storage.contexts(torch.arange(3, 6))["before", "state"][0]
    assert torch.equal(before, batch[STATE][0, 2])
    assert differ(before, expected_states(encoder, recording)[0, 2])


# ------------------------------------------------------------------------------------------------- leaks and resets


def states_with(change, *, lengths=(((3, 3), (3,)), ((2, 4), (3,)))):
    """States ``[N, T, D]`` after ``change`` was made to the recorded trials."""
    recording, encoder = record(lengths, window=1, episodes=1), make_encoder()
    change(recording.trials)
    with torch.no_grad():
        return lived(encoder, recording)[0][STATE]


def changed_frames(change):
    """Which frames of each lane see a change of what was lived."""
    difference = (states_with(change) - states_with(lambda trials: None)).abs().amax(-1)
    return [(row > 1e-6).nonzero().flatten().tolist() for row in difference]


def test_an_observation_is_seen_from_then_on_to_the_end_of_its_trial_in_its_own_lane():
    def change(trials):
        trials[0][0][0].observations[1][0] += 1

    assert changed_frames(change) == [[1, 2, 3, 4, 5], []]  # frames 6 to 8 are the next trial


def test_the_deciding_last_action_and_reward_are_seen_by_the_next_episode():
    def last_reward(trials):
        trials[1][0][0].rewards[-1] += 1

    def last_action(trials):
        trials[1][0][0].actions[-1][0] += 1

    assert changed_frames(last_reward) == [[], [2, 3, 4, 5]]
    assert changed_frames(last_action) == [[], [2, 3, 4, 5]]


def test_the_last_observation_of_an_episode_is_not_read():
    """As in RL2, whose next input has the new episode's first observation in its place."""

    def change(trials):
        trials[0][0][0].observations[-1][0] += 1

    assert changed_frames(change) == [[], []]


def test_a_new_trial_forgets_everything():
    def change(trials):
        for lane in trials:
            for episode in lane[0]:
                for values in (*episode.observations, *episode.actions, episode.rewards):
                    values[0] += 1

    assert changed_frames(change) == [[0, 1, 2, 3, 4, 5]] * 2


def test_lanes_that_appear_begin_a_trial_whatever_their_flags():
    recording, encoder = record([[[3, 3]]] * 2, window=1, episodes=1), make_encoder()
    memory = RecurrentMemory(encoder)
    row = steps(as_batch(recording, dtype=torch.float64))[3]  # the second episode's first step
    out = memory(row)
    assert out[keys.RECURRENT_BEGINS].all() and not out["context", "before", "state"].any()
    assert torch.equal(out["context", "current"][:, 0, OBSERVATION:], torch.tensor([[0.0, 0.0, 1.0]] * 2).double())


def test_forgetting_begins_anew_and_the_storage_knows():
    recording, encoder = record([[[3, 3, 3]]], window=1, episodes=1), make_encoder()
    memory, buffer = RecurrentMemory(encoder), make_buffer(batch_size=1)
    first, _ = lived(encoder, recording, 0, 3, memory)
    memory.forget()
    second, contexts = lived(encoder, recording, 3, 9, memory)
    assert not contexts["before", "state"][:, 0].any()
    assert second[keys.WINDOW_CURRENT][0].flatten().tolist() == [1, 1, 1, 2, 2, 2]  # counters go on
    with torch.no_grad():
        frames = buffer.extend(torch.cat([first, second], 1))
        assert_same(hidden_of(encoder, buffer.storage.contexts(frames))[:, 3:], second[STATE], 1e-10)
    assert buffer.storage.segments(9)[1].tolist() == [3, 6]


@pytest.mark.parametrize("drop", ["restart", "load"])
def test_a_restart_and_a_restored_memory(drop):
    recording, encoder = record([[[3], [3]]], window=1, episodes=1), make_encoder()
    memory = RecurrentMemory(encoder)
    lived(encoder, recording, 0, 3, memory)
    saved = memory.checkpoint_state()
    assert saved == {"lanes": 1, "episode": [0]}
    if drop == "restart":
        memory.restart()
        assert memory.checkpoint_state() == {"lanes": 0}
        assert lived(encoder, recording, 3, 6, memory)[0][keys.WINDOW_CURRENT][0, 0] == 0
        return
    other = RecurrentMemory(encoder)
    other.load_checkpoint_state(saved)
    straight, _ = lived(encoder, recording, 3, 6, memory)
    restored, _ = lived(encoder, recording, 3, 6, other)
    assert (straight == restored).all()
    assert restored[keys.WINDOW_CURRENT][0, 0] == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_goes_on_as_the_original_would(way):
    encoder, recording = make_encoder(), record(ragged(5), window=1, episodes=1)
    expected, contexts = lived(encoder, recording)
    memory = RecurrentMemory(encoder)
    lived(encoder, recording, 0, 17, memory)
    copied = WAYS[way](memory)
    for one in (copied, memory, WAYS[way](memory)):
        batch, context = lived(encoder, recording, 17, None, WAYS[way](one))
        assert (batch == expected[:, 17:]).all() and (context == contexts[:, 17:]).all()
    fresh, _ = lived(encoder, recording, 17, None)
    assert differ(fresh[STATE], expected[:, 17:][STATE])


def test_a_policy_that_moves_to_another_precision_takes_its_states_along():
    encoder, recording = make_encoder(), record(ragged(5), window=1, episodes=1)
    expected, _ = lived(encoder, recording)
    memory, batch = RecurrentMemory(encoder.float()), as_batch(recording)
    for row in steps(batch[:, :17]):
        memory(row)
    encoder.double()
    received, _ = lived(encoder, recording, 17, None, memory)
    assert_same(received[STATE], expected[:, 17:][STATE], 1e-5)


def test_the_memory_has_no_parameters():
    memory = RecurrentMemory(make_encoder())
    assert not list(memory.parameters()) and not memory.state_dict()


def test_what_was_handed_out_is_not_overwritten_later():
    recording, encoder = record(ragged(5), window=1, episodes=1), make_encoder()
    memory = RecurrentMemory(encoder)
    rows = steps(as_batch(recording, dtype=torch.float64))
    out = [memory(row) for row in rows]
    kept = [row.clone() for row in out]
    for row in steps(as_batch(recording, dtype=torch.float64)):
        memory(row)
    assert all((before == after).all() for before, after in zip(kept, out, strict=True))


def test_zeros_in_what_was_handed_out_do_not_reach_the_counters():
    """A collector's reset writes them."""
    recording = record(ragged(5), window=1, episodes=1)
    memory, other = RecurrentMemory(make_encoder()), RecurrentMemory(make_encoder())
    for row in steps(as_batch(recording, dtype=torch.float64)):
        out, untouched = memory(row.clone()), other(row.clone())
        assert torch.equal(out[keys.WINDOW_CURRENT], untouched[keys.WINDOW_CURRENT])
        out[keys.WINDOW_CURRENT].zero_()
    assert memory.checkpoint_state() == other.checkpoint_state()


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_any_batch_size(shape):
    lanes = max(1, int(torch.tensor(shape).prod()))
    recording, encoder = record(ragged(5, lanes=lanes), window=1, episodes=1), make_encoder()
    flat, shaped = RecurrentMemory(encoder), RecurrentMemory(encoder)
    for row in steps(as_batch(recording, dtype=torch.float64))[:15]:
        expected, out = flat(row.clone()), shaped(row.view(shape) if shape else row[0].clone())
        for key in (STATE, keys.RECURRENT_BEGINS, keys.WINDOW_CURRENT, keys.CURRENT, keys.WINDOW_EPISODE):
            assert torch.equal(out[key], expected[key].reshape(*shape, *expected[key].shape[1:]))


# ------------------------------------------------------------------------------------------------------ what is wrong


def test_wrong_arguments():
    with pytest.raises(ValueError, match="mlp_layers=0 is too small"):
        make_encoder(mlp_layers=0)
    with pytest.raises(ValueError, match="share a state_key"):
        RecurrentMemory([make_encoder(), make_encoder()])
    with pytest.raises(ValueError, match="tokens have size 4; the encoder needs 5"):
        make_encoder().step(torch.zeros(2, 4), torch.zeros(2, 6))


def test_a_skipped_batch_is_noticed():
    recording, encoder = record([[[3, 3]]], window=1, episodes=1), make_encoder()
    memory, buffer = RecurrentMemory(encoder), make_buffer(batch_size=1)
    lived(encoder, recording, 0, 3, memory)
    batch, _ = lived(encoder, recording, 3, 6, memory)
    frames = buffer.extend(batch)
    with pytest.raises(ValueError, match="comes from a frame that is not in the storage"):
        buffer.storage.contexts(frames)


def test_an_environment_without_final_steps_is_refused():
    encoder = make_encoder()
    memory = RecurrentMemory(encoder)
    rows = steps(as_batch(record([[[2, 2]]], window=1, episodes=1), dtype=torch.float64).exclude("final"))
    memory(rows[0])
    memory(rows[1])
    with pytest.raises(KeyError, match="append a TrialTransform"):
        memory(rows[2])


def test_mixed_precision_leaves_the_state_as_it_is():
    encoder = make_encoder().float()
    with torch.autocast("cpu", torch.bfloat16):
        state = encoder.step(torch.randn(2, encoder.token_dim), torch.zeros(2, 6))
    assert state.dtype == torch.float32
