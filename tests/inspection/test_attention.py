"""Numbers of attention on recordings whose answers are on paper."""

import math

import pytest
import torch

from htrmrl_torchrl.inspection.attention import (
    around_first_success,
    attention_by_episode,
    entropy,
    present_attention,
    relative_entropy,
    slot_entropy,
    success_preference,
    window_entropy,
)
from tests.helpers import assert_same
from tests.inspection.recordings import hand_made, two_trials


def test_entropy_is_zero_at_one_place_and_the_logarithm_of_the_places_where_all_are_alike():
    rows = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.25] * 4, [0.5, 0.5, 0.0, 0.0]])
    assert_same(entropy(rows), torch.tensor([0.0, math.log(4), math.log(2)]))


def test_relative_entropy_is_one_for_uniform_rows_of_any_length_and_zero_for_one_place():
    held = torch.tensor([[True] * 4, [False, False, True, True], [False, False, False, True]])
    uniform = (held / held.sum(-1, keepdim=True)).view(3, 1, 1, 4)
    peaked = torch.eye(4)[[3, 3, 3]].view(3, 1, 1, 4)
    both = torch.cat([uniform, peaked], 2)  # two heads
    assert_same(relative_entropy(both, held), torch.tensor([[1.0, 0.0]]))


def test_relative_entropy_by_hand():
    attention = torch.tensor([0.5, 0.25, 0.25]).view(1, 1, 1, 3)
    expected = (0.5 * math.log(2) + 0.5 * math.log(4)) / math.log(3)
    assert_same(relative_entropy(attention, torch.ones(1, 3, dtype=torch.bool)), torch.tensor([[expected]]))


def test_rows_without_a_choice_do_not_count():
    assert relative_entropy(torch.ones(1, 1, 1, 1), torch.ones(1, 1, dtype=torch.bool)).isnan().all()
    recording = two_trials()
    entropies = []
    for trial in range(2):
        for row, slots in zip(recording.slot_attention[trial, 1:], recording.slot_mask[trial, 1:], strict=True):
            row = row.flatten()[slots]
            entropies.append(float(-(row * row.log()).sum()) / math.log(len(row)))
    assert_same(slot_entropy(recording), torch.tensor([[sum(entropies) / 4]]))


def test_attention_by_episode_adds_the_slots_that_show_an_episode():
    shares = attention_by_episode(two_trials())
    assert shares.shape == (2, 3, 1, 4)
    expected = [
        [[0, 0, 0, 1], [0.75, 0, 0, 0.25], [0.125, 0.5, 0, 0.375]],
        [[0, 0, 0, 1], [0.5, 0, 0, 0.5], [0.5, 0.25, 0, 0.25]],
    ]
    assert_same(shares.squeeze(2), torch.tensor(expected))


def test_around_the_first_success():
    around = around_first_success(two_trials())  # of the first trial alone; the other has none
    assert around.offset.tolist() == [-1, 0, 1] and around.trials.tolist() == [1, 1, 1]
    #                             present, successful, failed
    expected = torch.tensor([[1, 0, 0], [0.25, 0, 0.75], [0.375, 0.5, 0.125]])
    assert_same(around.attention, expected)
    assert_same(around.uniform, torch.tensor([[1, 0, 0], [1 / 2, 0, 1 / 2], [1 / 3, 1 / 3, 1 / 3]]))


def test_around_the_first_success_averages_trials_at_equal_distance():
    recording = hand_made(
        success=[[1, 0], [0, 1]],
        slot_episode=[[[-1], [0]], [[-1], [0]]],
        attention=[[[0.0, 1.0], [0.75, 0.25]], [[0.0, 1.0], [0.5, 0.5]]],
    )
    around = around_first_success(recording)
    assert around.offset.tolist() == [-1, 0, 1] and around.trials.tolist() == [1, 2, 1]
    assert_same(around.attention, torch.tensor([[1, 0, 0], [0.75, 0, 0.25], [0.25, 0.75, 0]]))


def test_without_success_there_is_nothing_around_it():
    recording = hand_made(success=[[0, 0]], slot_episode=[[[-1], [0]]], attention=[[[0.0, 1.0], [0.5, 0.5]]])
    assert around_first_success(recording) is None
    assert math.isnan(success_preference(recording))


def test_preference_for_successful_windows():
    """The one decision whose memory holds both has 0.5 on the success and 0.125 on the failure."""
    assert success_preference(two_trials()) == pytest.approx(4.0, rel=1e-6)


def test_one_level_has_no_attention_over_windows():
    recording = two_trials()
    bare = type(recording)(**{**vars(recording), "slot_attention": None})
    assert slot_entropy(bare) is None and window_entropy(bare) is None
    with pytest.raises(ValueError, match="no upper level"):
        present_attention(bare)
