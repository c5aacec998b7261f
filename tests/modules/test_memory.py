"""The rollout memory shows what the reference shows, caches without changing a number, and forgets."""

import copy
import pickle

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from htrmrl_torchrl import EpisodicMemory, keys
from htrmrl_torchrl.data.strategies import STRATEGIES, make_strategy
from tests.data.test_storage import ragged
from tests.helpers import as_batch, assert_context, assert_same, differ, past_of, record, stack_contexts
from tests.modules.test_encoder import make_encoder, run
from tests.reference import embed_window, make_context, newest_window, window_from

RAW = (
    keys.OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.IS_INIT, keys.TRIAL_INIT, keys.EPISODE,
    keys.FINAL_OBSERVATION, keys.FINAL_ACTION, keys.FINAL_REWARD,
)  # fmt: skip


def steps(batch):
    """What the environment gives at each step, ``[N]``."""
    return [row.clone() for row in batch.select(*RAW, strict=False).unbind(1)]


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
@pytest.mark.parametrize("strategy", ["recent", "uniform", "best_return", "diverse"])
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
    with pytest.raises(ValueError, match=r"asks for embeddings.*EpisodicMemory\(encoder"):
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
    monkeypatch.setattr("htrmrl_torchrl.data.history._FIRST_CAPACITY", capacity)
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


# ---------------------------------------------------------------------------------------------- cached or not


@pytest.mark.parametrize("attention", ["causal", "full"])
@pytest.mark.parametrize("strategy", ["recent", "uniform", "best_return", "diverse"])
def test_cached_equals_uncached_also_after_weights_changed(strategy, attention):
    """Weights change in place in the middle of episodes and trials: by an optimizer, and by loading."""
    encoder = make_encoder(attention=attention).requires_grad_(True)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.05)
    cached = EpisodicMemory(encoder, strategy=strategy, seed=3)
    plain = EpisodicMemory(window=3, episodes=3, strategy=strategy, seed=3)
    recording = record(ragged(6), window=3, episodes=3)
    stale, changed = None, 0
    for frame, step in enumerate(steps(as_batch(recording, dtype=torch.float64))):
        held = stale
        with_cache, without = cached(step.clone()), plain(step.clone())
        stale = with_cache[keys.PAST_CACHE].clone()
        assert keys.PAST_CACHE[1] not in without[keys.CONTEXT].keys()
        with torch.no_grad():
            assert_same(run(encoder, with_cache["context"]), run(encoder, without["context"]), 1e-10)
        if held is not None and frame % 7 == 1:
            changed += differ(held, stale)
        if frame % 7 == 0:
            optimizer.zero_grad()
            run(encoder, without["context"]).square().sum().backward()
            optimizer.step()
        elif frame % 7 == 4:
            encoder.load_state_dict({name: 0.9 * x for name, x in encoder.state_dict().items()})
    assert changed >= 4


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_cached_equals_uncached_also_after_the_statistics_of_observations_moved(attention):
    encoder = make_encoder(attention=attention)
    cached, plain = EpisodicMemory(encoder, seed=3), EpisodicMemory(window=3, episodes=3, seed=3)
    recording = record(ragged(6), window=3, episodes=3)
    for frame, step in enumerate(steps(as_batch(recording, dtype=torch.float64))):
        outputs = [run(encoder, memory(step.clone())["context"]) for memory in (cached, plain)]
        assert_same(*outputs, 1e-10)
        if frame % 5 == 2:
            encoder.tokens.adapt(step[keys.OBSERVATION] * (1 + frame))


def test_two_encoders_are_cached_beside_each_other():
    actor, critic = make_encoder(), make_encoder(seed=1, hidden_key="_critic", cache_key=("context", "critic_cache"))
    memory, plain = EpisodicMemory([actor, critic]), EpisodicMemory(window=3, episodes=3)
    for step in steps(as_batch(record(ragged(6), window=3, episodes=3), dtype=torch.float64)):
        cached, without = memory(step.clone()), plain(step.clone())
        for encoder in (actor, critic):
            assert_same(
                encoder(cached.copy())[encoder.out_keys[0]], encoder(without.copy())[encoder.out_keys[0]], 1e-10
            )


def test_refresh_is_for_weights_that_change_unseen():
    encoder = make_encoder()
    memory, plain = EpisodicMemory(encoder, strategy="recent"), EpisodicMemory(window=3, episodes=3, strategy="recent")
    # A first episode, then two steps of the second: what was cached must be encoded anew between them.
    before, unseen, seen = steps(as_batch(record([[[2, 4]]], window=3, episodes=3), dtype=torch.float64))[2:5]
    for step in steps(as_batch(record([[[2, 4]]], window=3, episodes=3), dtype=torch.float64))[:2]:
        memory(step.clone()), plain(step.clone())
    memory(before.clone()), plain(before.clone())
    for parameter in encoder.parameters():
        parameter.data = parameter.data * 1.5  # keeps the version that torch counts
    outputs = [run(encoder, m(unseen.clone())["context"]) for m in (memory, plain)]
    assert differ(*outputs)
    memory.refresh()
    assert_same(*(run(encoder, m(seen.clone())["context"]) for m in (memory, plain)), 1e-10)


def test_refresh_before_the_first_step_is_harmless():
    memory = EpisodicMemory(make_encoder())
    memory.refresh()
    recording = record(ragged(6), window=3, episodes=3)
    step = steps(as_batch(recording, dtype=torch.float64))[0]
    memory(step)
    memory.forget()
    memory.refresh()
    copy.deepcopy(memory).refresh()


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


# ------------------------------------------------------------------------------------------------------- no leaks


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


# ------------------------------------------------------------------------------------------- forget, copy, save, load


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


# ------------------------------------------------------------------------------------------------- what may go wrong


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"window=None and episodes=None must be at least 1; give them or an encoder"):
        EpisodicMemory()
    with pytest.raises(ValueError, match=r"window=0 and episodes=2"):
        EpisodicMemory(window=0, episodes=2)
    with pytest.raises(ValueError, match=r"window=0"):
        EpisodicMemory(make_encoder(), window=0)
    with pytest.raises(ValueError, match=r"'newest' is unknown.*recent, uniform, best_return, diverse, similar"):
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
