"""What strategies are shown of the past: computed when asked for, and not before."""

import numpy as np
import pytest

from htrmrl_torchrl.memory.past import PastEpisodes, check_scope
from tests.helpers import past_of, record


def test_it_shows_the_episodes_as_they_were():
    episodes = record([[[3, 5, 1]]], window=1, episodes=1).trials[0][0]
    past = past_of(episodes)
    assert len(past) == 3 and list(past.lengths) == [4, 6, 2]
    for index, episode in enumerate(episodes):
        np.testing.assert_array_equal(past.tokens(index), np.array(episode.tokens, dtype=np.float32))
        np.testing.assert_array_equal(past.observations(index), np.array(episode.observations, dtype=np.float32))
        np.testing.assert_array_equal(past.rewards(index), np.array(episode.rewards, dtype=np.float32))
    np.testing.assert_allclose(past.returns, [sum(episode.rewards) for episode in episodes], atol=1e-6)


def test_nothing_is_computed_before_it_is_asked_for_and_then_once():
    calls = []

    def noted(name, value):
        def call(*_):
            calls.append(name)
            return value

        return call

    tokens, embedding = np.zeros((3, 5)), np.ones(2)
    past = PastEpisodes(
        [3, 3],
        tokens=noted("tokens", tokens),
        observation_dim=2,
        embed=noted("embed", np.ones((1, 2))),
        present=noted("present", embedding),
    )
    assert not calls
    assert past.present is past.present and past.returns is past.returns
    assert calls == ["present", "tokens", "tokens"]


def test_embeddings_are_refused_where_there_is_no_encoder():
    past = PastEpisodes([3], tokens=lambda episode: np.zeros((3, 5)), observation_dim=2)
    for ask in (lambda: past.embed([(0, 0)]), lambda: past.present):
        with pytest.raises(ValueError, match=r"needs embeddings.*EpisodicMemory\(encoder"):
            ask()


def test_scopes():
    check_scope("trial", None)
    check_scope("lane", 1)
    for scope, most, message in (
        ("task", None, "'task' is unknown; choose one of trial, lane"),
        ("lane", None, "give max_episodes"),
        ("trial", 0, "max_episodes=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            check_scope(scope, most)
