"""Encoding the past once an episode changes no number."""

import pytest
import torch
from tensordict import TensorDict

from htrmrl_torchrl import EpisodicMemory, keys
from tests.encoders.test_hierarchical import make_encoder, run
from tests.helpers import as_batch, assert_same, differ, record, steps
from tests.replay.test_storage import ragged


@pytest.mark.parametrize("attention", ["causal", "full"])
@pytest.mark.parametrize(
    "strategy", ["recent", "uniform", "uniform_last", "best_return", "best_and_uniform", "diverse"]
)
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


def test_the_cache_follows_statistics_whose_tensors_were_replaced_as_by_a_move_to_another_device():
    encoder = make_encoder().float()
    cached, plain = EpisodicMemory(encoder, seed=3), EpisodicMemory(window=3, episodes=3, seed=3)
    statistics = list(encoder.buffers())
    encoder.double()
    assert any(old is not new for old, new in zip(statistics, encoder.buffers(), strict=True))
    for frame, step in enumerate(steps(as_batch(record(ragged(6), window=3, episodes=3), dtype=torch.float64))):
        outputs = [run(encoder, memory(step.clone())["context"]) for memory in (cached, plain)]
        assert_same(*outputs, 1e-10)
        encoder.tokens.mean.add_(0.1 * (frame % 3))  # one statistic alone, and none that kept its tensor


def test_two_encoders_are_cached_beside_each_other():
    actor, critic = make_encoder(), make_encoder(seed=1, hidden_key="_critic", cache_key=("context", "critic_cache"))
    memory, plain = EpisodicMemory([actor, critic]), EpisodicMemory(window=3, episodes=3)
    for step in steps(as_batch(record(ragged(6), window=3, episodes=3), dtype=torch.float64)):
        cached, without = memory(step.clone()), plain(step.clone())
        for encoder in (actor, critic):
            assert_same(
                encoder(cached.copy())[encoder.out_keys[0]], encoder(without.copy())[encoder.out_keys[0]], 1e-10
            )


def through_data(encoder):
    """As TorchRL's weight updates write."""
    TensorDict.from_module(encoder).data.update_(TensorDict.from_module(encoder).data.apply(lambda x: 1.5 * x))


def with_new_data(encoder):
    for parameter in encoder.parameters():
        parameter.data = 1.5 * parameter.data


def one_statistic(encoder):
    encoder.tokens.mean.data += 0.1


def one_weight(encoder):
    encoder.intra.embed.weight.data[-1, -1] += 0.5


@pytest.mark.parametrize("change", [through_data, with_new_data, one_statistic, one_weight])
def test_the_cache_follows_changes_that_torch_does_not_count(change):
    encoder = make_encoder()
    memory, plain = EpisodicMemory(encoder, strategy="recent"), EpisodicMemory(window=3, episodes=3, strategy="recent")
    rows = steps(as_batch(record([[[2, 4, 4]]], window=3, episodes=3), dtype=torch.float64))
    for row in rows[:8]:
        held = memory(row.clone())[keys.PAST_CACHE].clone()
        plain(row.clone())
    versions = [tensor._version for tensor in (*encoder.parameters(), *encoder.buffers())]
    change(encoder)
    assert versions == [tensor._version for tensor in (*encoder.parameters(), *encoder.buffers())]
    cached, without = memory(rows[8].clone()), plain(rows[8].clone())
    assert_same(run(encoder, cached["context"]), run(encoder, without["context"]), 1e-10)
    stale = cached["context"].set(keys.PAST_CACHE[1], held)
    assert (run(encoder, stale) - run(encoder, without["context"])).abs().max() > 1e-10


def test_the_cache_follows_functional_weights_and_comes_back():
    encoder = make_encoder()
    memory, plain = EpisodicMemory(encoder), EpisodicMemory(window=3, episodes=3)
    other = TensorDict.from_module(make_encoder(seed=1)).data.clone()
    for frame, row in enumerate(steps(as_batch(record(ragged(6), window=3, episodes=3), dtype=torch.float64))):
        if frame % 3:
            outputs = [run(encoder, m(row.clone())["context"]) for m in (memory, plain)]
        else:
            with other.to_module(encoder):
                outputs = [run(encoder, m(row.clone())["context"]) for m in (memory, plain)]
        assert_same(*outputs, 1e-10)


def test_equal_weights_are_not_encoded_again(monkeypatch):
    encoder, encoded = make_encoder(), []
    memory = EpisodicMemory(encoder)
    monkeypatch.setattr(type(memory), "_encode", lambda self, state, lanes: encoded.append(len(lanes)))
    for row in steps(as_batch(record([[[3, 3]]], window=3, episodes=3), dtype=torch.float64)):
        memory(row)
        encoder.load_state_dict(encoder.state_dict())
    assert encoded == [1, 1, 1]  # at each episode's start, and when nothing was known of the weights


def test_a_change_before_the_first_step_is_harmless():
    encoder = make_encoder()
    memory = EpisodicMemory(encoder)
    through_data(encoder)
    memory(steps(as_batch(record(ragged(6), window=3, episodes=3), dtype=torch.float64))[0])
