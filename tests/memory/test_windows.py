"""Tokens and windows against the loops of the reference."""

import pytest
import torch

from htrmrl_torchrl.memory.windows import final_token, make_token, window_at
from tests.helpers import TOKEN, as_batch, record
from tests.reference import newest_window, window_from


def test_tokens_are_observation_previous_action_previous_reward_and_first():
    recording = record([[[3, 2]]], window=2, episodes=1)
    tokens = make_token(as_batch(recording))[0]
    first, second = recording.trials[0][0]
    assert torch.equal(tokens, torch.tensor(first.tokens[:3] + second.tokens[:2]))
    assert tokens[:, -1].tolist() == [1, 0, 0, 1, 0]
    assert not tokens[0, 2:4].any() and tokens[1, 2:4].all()  # no previous action and reward at the start


def test_the_final_token_is_told_at_the_next_episodes_first_step():
    recording = record([[[3, 2]]], window=2, episodes=1)
    batch = as_batch(recording)
    assert torch.equal(final_token(batch)[0, 3], torch.tensor(recording.trials[0][0][0].tokens[-1]))
    assert torch.equal(make_token(batch["next"])[0, 2], final_token(batch)[0, 3])


def test_an_environment_without_final_steps_is_refused():
    batch = as_batch(record([[[2]]], window=2, episodes=1))
    with pytest.raises(KeyError, match=r"append a TrialTransform"):
        final_token(batch.exclude("final"))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_windows_equal_the_loops(length):
    episode = record([[[6]]], window=length, episodes=1).trials[0][0][0]
    table = torch.cat([torch.randn(4, TOKEN), torch.tensor(episode.tokens), torch.randn(4, TOKEN)])  # neighbours
    for t in range(7):
        tokens, mask = newest_window(episode, t, length).padded(TOKEN)
        got, got_mask = window_at(table, torch.tensor(4 + t), torch.tensor(4), length)
        assert torch.equal(got, torch.tensor(tokens)) and got_mask.tolist() == mask
    for start in range(7):
        tokens, mask = window_from(episode, start, length).padded(TOKEN)
        newest = torch.tensor(4 + min(start + length, 7) - 1)
        got, got_mask = window_at(table, newest, torch.tensor(4 + start), length)
        assert torch.equal(got, torch.tensor(tokens)) and got_mask.tolist() == mask


def test_a_window_that_ends_before_it_begins_is_empty():
    tokens, mask = window_at(torch.randn(5, TOKEN), torch.tensor([2]), torch.tensor([3]), 3)
    assert not tokens.any() and not mask.any()
