"""The rollout memory shows what the reference shows, and says what it cannot do."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from htrmrl_torchrl import EpisodicMemory, keys
from htrmrl_torchrl.memory.strategies import make_strategy
from tests.encoders.test_hierarchical import make_encoder, run
from tests.helpers import RAW, as_batch, assert_context, assert_same, past_of, record, stack_contexts, steps
from tests.reference import embed_window, make_context, newest_window, window_from
from tests.replay.test_storage import ragged


def strategy_draws(recording, strategy, *, seed=0, encoder=None):
    """The windows that a strategy draws for each episode from streams [seed, lane], one draw an episode."""
    drawn = {}
    for lane, trials in enumerate(recording.trials):
        rng = np.random.default_rng([seed, lane])
        for n, trial in enumerate(trials):
            for k in range(len(trial)):
                past = recording.visible(lane, n, k)
                seen = past_of(past, earlier=max(0, len(past) - k), **embeddings(encoder, recording, past, trial[k]))
                draws = make_strategy(strategy)(
                    seen, slots=recording.episodes - 1, window=recording.window, rng=rng
                ) if recording.episodes > 1 else []  # fmt: skip
                drawn[lane, n, k] = sorted(draws)
    return drawn


def embeddings(encoder, recording, past, running):
    """What a strategy that asks for embeddings gets, from the loops of the reference."""
    if encoder is None:
        return {}
    length = recording.window
    return {
        "embed": lambda windows: torch.stack(
            [embed_window(encoder, window_from(past[e], start, length)) for e, start in windows]
        ).numpy(),
        "present": lambda: embed_window(encoder, newest_window(running, 0, length)).numpy(),
    }


def check_rollout(recording, memory, drawn, dtype=torch.float32):
    """Contexts and window keys along a rollout equal the reference's, given what is drawn for each episode."""
    for frame, step in enumerate(steps(as_batch(recording, dtype=dtype))):
        out = memory(step)
        for lane in range(len(recording.trials)):
            at = recording.steps[lane][frame]
            windows = drawn[lane, at.n, at.k]
            assert_context(out["context"][lane], recording.context_of(at, lane, drawn))
            running = recording.running(lane, at)
            oldest = running - len(recording.visible(lane, at.n, at.k))
            empty = [-1] * (recording.episodes - 1 - len(windows))
            assert out[keys.WINDOW_EPISODE][lane].tolist() == empty + [oldest + e for e, _ in windows]
            assert out[keys.WINDOW_START][lane].tolist() == empty + [s for _, s in windows]
            assert out[keys.WINDOW_CURRENT][lane].tolist() == [running]


SCOPED = [("trial", None), ("trial", 2), ("lane", 1), ("lane", 3), ("lane", 100)]


@pytest.mark.parametrize("window,episodes", [(1, 1), (1, 3), (3, 1), (3, 4)])
@pytest.mark.parametrize(
    "strategy", ["recent", "uniform", "uniform_last", "best_return", "best_and_uniform", "diverse"]
)
@pytest.mark.parametrize(("scope", "max_episodes"), SCOPED)
def test_contexts_along_a_rollout_equal_the_reference(strategy, window, episodes, scope, max_episodes):
    """Lanes reset at different steps. The draws come from a stream of each lane's own, which needs no other lane."""
    recording = record(ragged(4), window=window, episodes=episodes, scope=scope, max_episodes=max_episodes)
    drawn = strategy_draws(recording, strategy, seed=7)
    memory = EpisodicMemory(
        window=window, episodes=episodes, strategy=strategy, scope=scope, max_episodes=max_episodes, seed=7
    )
    check_rollout(recording, memory, drawn)


@pytest.mark.parametrize(("scope", "max_episodes"), SCOPED)
def test_windows_drawn_by_embedding_equal_the_reference(scope, max_episodes):
    encoder = make_encoder()
    recording = record(ragged(4), window=3, episodes=3, scope=scope, max_episodes=max_episodes)
    drawn = strategy_draws(recording, "similar", encoder=encoder)
    memory = EpisodicMemory(encoder, strategy="similar", scope=scope, max_episodes=max_episodes)
    check_rollout(recording, memory, drawn, torch.float64)
    # Other weights see other things alike, where there is a choice (episodes of 7 tokens have two candidates).
    assert max_episodes == 1 or strategy_draws(recording, "similar", encoder=make_encoder(seed=1)) != drawn


def test_embeddings_need_an_encoder():
    memory = EpisodicMemory(window=2, episodes=2, strategy="similar")
    with pytest.raises(ValueError, match=r"needs embeddings.*EpisodicMemory\(encoder"):
        for step in steps(as_batch(record([[[2, 2]]], window=2, episodes=2))):
            memory(step)


def test_earlier_trials_are_told_from_the_running_one():
    seen = []

    def note(past, *, slots, window, rng):
        seen.append((len(past), past.earlier))
        return []

    batch = as_batch(record([[[1, 1], [1, 1, 1], [1]]], window=2, episodes=2))
    memory = EpisodicMemory(window=2, episodes=2, strategy=note, scope="lane", max_episodes=3)
    for step in steps(batch):
        memory(step)
    assert seen == [(0, 0), (1, 0), (2, 2), (3, 2), (3, 1), (3, 3)]


def test_what_ran_before_a_trial_of_which_nothing_ended_is_no_episode():
    """A collector calls the policy once to try it, and begins with the same first row again: no episode has ended."""
    recording = record([[[3, 2], [2, 2]]], window=2, episodes=4, scope="lane", max_episodes=9)
    first = steps(as_batch(recording))[0]
    tried, untouched = (EpisodicMemory(window=2, episodes=4, scope="lane", max_episodes=9) for _ in range(2))
    tried(first.clone())
    for step in steps(as_batch(recording)):
        received, expected = tried(step.clone()), untouched(step.clone())
        assert (received[keys.CONTEXT].exclude("past_id") == expected[keys.CONTEXT].exclude("past_id")).all()
        assert (received[keys.WINDOW_CURRENT] == expected[keys.WINDOW_CURRENT] + 1).all()
    assert expected[keys.SLOT_MASK].all()


def test_a_restored_lane_whose_environment_begins_anew_drops_what_ran():
    """A foreign environment is not saved: it cannot say how the last episode ended, but those before it stay."""
    recording = record([[[3, 2], [2, 2]]], window=2, episodes=4)
    rows = steps(as_batch(recording))
    saved, loaded = (
        EpisodicMemory(window=2, episodes=4, strategy="recent", scope="lane", max_episodes=9) for _ in range(2)
    )
    for row in rows[:5]:
        saved(row)
    loaded.load_checkpoint_state(saved.checkpoint_state())
    begins_anew = rows[5].clone()
    begins_anew["final"] = begins_anew["final"].clone().zero_()
    assert loaded(begins_anew)[keys.WINDOW_EPISODE].tolist() == [[-1, -1, 0]]
    assert saved(rows[5])[keys.WINDOW_EPISODE].tolist() == [[-1, 0, 1]]


def test_a_dropped_episode_is_never_shown_and_leaves_a_gap_in_the_numbers():
    recording = record([[[3, 2, 2]]], window=2, episodes=4)
    rows = steps(as_batch(recording))
    memory = EpisodicMemory(window=2, episodes=4, strategy="recent", scope="lane", max_episodes=2)
    for row in rows[:4]:
        memory(row)
    memory.drop_running(torch.tensor([0]))
    out = memory(rows[5])  # episode 2 begins, 1 was dropped
    assert out[keys.WINDOW_CURRENT].tolist() == [[2]] and out[keys.WINDOW_EPISODE].tolist() == [[-1, -1, 0]]


@pytest.mark.parametrize("capacity", [4, 9, 64])
def test_the_history_keeps_no_more_room_than_it_needs(capacity, monkeypatch):
    """A row's forgotten tokens make room for new ones, and contexts stay right across every move."""
    monkeypatch.setattr("htrmrl_torchrl.memory.history._FIRST_CAPACITY", capacity)
    recording = record(ragged(3, frames=200), window=3, episodes=4, scope="lane", max_episodes=2)
    memory = EpisodicMemory(window=3, episodes=4, scope="lane", max_episodes=2)
    check_rollout(recording, memory, strategy_draws(recording, "uniform"))
    # At most two ended episodes of at most 7 tokens and a running one: 21, doubled while more than half is in use.
    assert memory._state.history._table.shape[1] <= max(64, 42 * 2)


def test_what_was_handed_out_is_not_overwritten_later():
    recording = record(ragged(5), window=3, episodes=3)
    memory = EpisodicMemory(window=3, episodes=3)
    out = [memory(step) for step in steps(as_batch(recording))]
    kept = [step.clone() for step in out]
    memory.forget()
    for step in steps(as_batch(recording)):
        memory(step)
    for before, after in zip(kept, out, strict=True):
        assert (before == after).all()


def test_zeros_in_what_was_handed_out_do_not_reach_the_memory():
    """A collector's reset writes them."""
    recording = record(ragged(5), window=3, episodes=3)
    memory, other = (EpisodicMemory(window=3, episodes=3) for _ in range(2))
    for step in steps(as_batch(recording)):
        out, untouched = memory(step.clone()), other(step.clone())
        for key in (keys.WINDOW_EPISODE, keys.WINDOW_START, keys.WINDOW_CURRENT):
            assert torch.equal(out[key], untouched[key])
            out[key].zero_()
    assert memory.checkpoint_state() == other.checkpoint_state()


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_any_batch_size(shape):
    recording = record(ragged(5, lanes=6), window=3, episodes=3)
    flat, shaped = EpisodicMemory(window=3, episodes=3), EpisodicMemory(window=3, episodes=3)
    lanes = int(np.prod(shape))
    for step in steps(as_batch(recording)[:lanes])[:20]:
        out = shaped(step.view(shape) if shape else step[0].clone())
        expected = flat(step)
        assert out[keys.CONTEXT].batch_size == torch.Size(shape)
        for key in (
            keys.CURRENT,
            keys.PAST,
            keys.SLOT_MASK,
            keys.WINDOW_EPISODE,
            keys.WINDOW_START,
            keys.WINDOW_CURRENT,
        ):
            assert torch.equal(out[key], expected[key].reshape(*shape, *expected[key].shape[1:]))


@pytest.mark.parametrize("shape", [(), (2,), (2, 1)])
def test_any_batch_size_without_slots(shape):
    recording = record(ragged(5, lanes=2), window=3, episodes=1)
    memory = EpisodicMemory(window=3, episodes=1)
    for step in steps(as_batch(recording))[:5]:
        out = memory(step.view(shape) if shape else step[0].clone())
        assert out[keys.WINDOW_EPISODE].shape == (*shape, 0)


def test_the_memory_grows_beyond_its_first_capacity():
    """512 tokens are allocated at first; these trials have more, in one episode and over several."""
    lengths = [[[560]], [[150, 150, 150, 110]]]
    recording = record(lengths, window=3, episodes=4)
    memory = EpisodicMemory(window=3, episodes=4, strategy="uniform")
    drawn = strategy_draws(recording, "uniform")
    check = {0, 449, 450, 451, 508, 509, 510, 511, 512, 513, 559}
    for frame, step in enumerate(steps(as_batch(recording))):
        out = memory(step)
        for lane in range(2) if frame in check else ():
            at = recording.steps[lane][frame]
            expected = make_context(recording.trials[lane][0], at.k, at.t, drawn[lane, 0, at.k], 3, 4)
            assert_context(out["context"][lane], expected)


# ------------------------------------------------------------------------------------------------- what may go wrong


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"window=None and episodes=None must be at least 1; give them or an encoder"):
        EpisodicMemory()
    with pytest.raises(ValueError, match=r"window=0 and episodes=2"):
        EpisodicMemory(window=0, episodes=2)
    with pytest.raises(ValueError, match=r"window=0"):
        EpisodicMemory(make_encoder(), window=0)
    with pytest.raises(
        ValueError, match=r"'newest' is unknown.*recent, uniform, uniform_last, best_return, best_and_uniform, diverse"
    ):
        EpisodicMemory(window=2, episodes=2, strategy="newest")
    with pytest.raises(ValueError, match=r"'world' is unknown.*trial, lane"):
        EpisodicMemory(window=2, episodes=2, scope="world")
    with pytest.raises(ValueError, match=r"scope='lane'.*give max_episodes"):
        EpisodicMemory(window=2, episodes=2, scope="lane")
    with pytest.raises(ValueError, match=r"max_episodes=0 must be at least 1"):
        EpisodicMemory(window=2, episodes=2, max_episodes=0)


def test_an_environment_without_final_steps_is_refused():
    memory = EpisodicMemory(window=2, episodes=2)
    batch = steps(as_batch(record([[[2, 2]]], window=2, episodes=2)).exclude("final"))
    memory(batch[0])
    memory(batch[1])
    with pytest.raises(KeyError, match=r"append a TrialTransform"):
        memory(batch[2])


def test_the_reference_sees_the_same_as_the_encoder():
    """Whole path of one rollout: memory and encoder equal the loops over raw steps."""
    from tests.reference import encode

    encoder = make_encoder()
    recording = record(ragged(12, lanes=2, frames=14), window=3, episodes=3)
    drawn = strategy_draws(recording, "uniform")
    memory = EpisodicMemory(encoder)
    for frame, step in enumerate(steps(as_batch(recording, dtype=torch.float64))):
        hidden = encoder(memory(step))[keys.HIDDEN]
        for lane in range(2):
            at = recording.steps[lane][frame]
            context = make_context(recording.trials[lane][at.n], at.k, at.t, drawn[lane, at.n, at.k], 3, 3)
            assert_same(hidden[lane], encode(encoder, context), 1e-10)
            assert_same(run(encoder, stack_contexts([context]))[0], hidden[lane], 1e-10)


def test_an_own_strategy_may_leave_slots_empty_and_draw_twice():
    def first_twice(past, *, slots, window, rng):
        return [(0, 1), (0, 1)] if len(past) == 2 else []

    recording = record([[[3, 3, 3]]], window=2, episodes=4, draw=lambda n: [(0, 1), (0, 1)] if len(n) == 2 else [])
    memory = EpisodicMemory(window=2, episodes=4, strategy=first_twice)
    for frame, step in enumerate(steps(as_batch(recording))):
        assert_context(memory(step)["context"][0], recording.context(0, frame))


def test_an_own_strategy_may_not_draw_more_than_there_is_room_for():
    def greedy(past, *, slots, window, rng):
        return [(0, 0)] * (slots + 1) if len(past) else []

    memory = EpisodicMemory(window=2, episodes=3, strategy=greedy)
    with pytest.raises(ValueError, match="returned 3 windows for 2 slots"):
        for step in steps(as_batch(record([[[2, 2]]], window=2, episodes=3))):
            memory(step)


@pytest.mark.parametrize("drawn", [(1, 0), (-1, 0), (0, 3), (0, -1)])
def test_an_own_strategy_may_only_draw_what_there_is(drawn):
    memory = EpisodicMemory(window=2, episodes=3, strategy=lambda past, **_: [drawn] if len(past) else [])
    with pytest.raises(ValueError, match=rf"returned \({drawn[0]}, {drawn[1]}\).*have \[3\] tokens"):
        for step in steps(as_batch(record([[[2, 2]]], window=2, episodes=3))):
            memory(step)


def test_a_strategy_cannot_change_what_is_remembered():
    def vandal(past, *, slots, window, rng):
        for episode in range(len(past)):
            past.tokens(episode)[:] = 0
        return []

    memory = EpisodicMemory(window=2, episodes=3, strategy=vandal)
    with pytest.raises(ValueError, match="read-only"):
        for step in steps(as_batch(record([[[2, 2]]], window=2, episodes=3))):
            memory(step)


def test_the_memory_adds_only_the_context_and_the_window_keys():
    step = steps(as_batch(record([[[2]]], window=2, episodes=2)))[0]
    out = EpisodicMemory(window=2, episodes=2)(step.clone())
    assert set(out.keys()) - set(step.keys()) == {"context", "window"}
    assert isinstance(out, TensorDict) and (out.select(*RAW) == step).all()
