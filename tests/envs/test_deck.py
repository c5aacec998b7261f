"""The deck is balanced at every moment and over time, whatever the order of trial ends."""

import numpy as np
import pytest

from htrmrl_torchrl.envs.deck import FixedGrid, TaskDeck

SIZES = [(1, 1), (1, 5), (10, 20), (10, 7), (45, 20), (15, 20), (3, 8), (25, 25)]  # tasks, lanes


def make(tasks, lanes, seed=0, goals=4):
    return TaskDeck(num_tasks=tasks, num_goals=goals, num_lanes=lanes, seed=seed)


@pytest.mark.parametrize(("tasks", "lanes"), SIZES)
def test_counts_differ_by_at_most_one_under_staggered_trial_ends(tasks, lanes):
    deck, rng = make(tasks, lanes), np.random.default_rng(1)
    playing = dict(enumerate(deck.deal(range(lanes))))
    for _ in range(300):
        ending = np.flatnonzero(rng.random(lanes) < rng.random()).tolist()
        playing.update(zip(ending, deck.deal(ending), strict=True))
        counts = np.bincount([task for task, _ in playing.values()], minlength=tasks)
        assert counts.max() - counts.min() <= 1
        assert deck.counts() == counts.tolist()


@pytest.mark.parametrize(("tasks", "lanes"), SIZES)
def test_tasks_are_dealt_equally_often_when_trials_end_together(tasks, lanes):
    deck, dealt = make(tasks, lanes), np.zeros(tasks, dtype=int)
    for _ in range(40):
        for task, _ in deck.deal(range(lanes)):
            dealt[task] += 1
        assert dealt.max() - dealt.min() <= 1


@pytest.mark.parametrize(("tasks", "lanes"), [(45, 20), (15, 20), (3, 8), (10, 7)])
def test_tasks_are_dealt_equally_often_when_lanes_take_turns(tasks, lanes):
    deck, dealt = make(tasks, lanes), np.zeros(tasks, dtype=int)
    deck.deal(range(lanes))
    for turn in range(200 * tasks):
        dealt[deck.deal([turn % lanes])[0][0]] += 1
    assert dealt.max() - dealt.min() <= 2  # one in all deals, one in the first, which is left out here


def test_lanes_change_task_where_numbers_do_not_divide():
    deck = make(3, 4)
    seen = [set() for _ in range(4)]
    for _ in range(30):
        for lane, (task, _) in enumerate(deck.deal(range(4))):
            seen[lane].add(task)
    assert all(tasks == {0, 1, 2} for tasks in seen)


def test_every_goal_is_dealt_once_before_any_twice():
    deck = make(2, 2, goals=50)
    goals = {0: [], 1: []}
    for _ in range(100):
        for task, goal in deck.deal(range(2)):
            goals[task].append(goal)
    for sequence in goals.values():
        assert sorted(sequence[:50]) == sorted(sequence[50:]) == list(range(50))
        assert sequence[:50] != list(range(50)) and sequence[:50] != sequence[50:]


def test_same_seed_same_deals_and_another_seed_others():
    deals = [[deck.deal(range(7)) for _ in range(5)] for deck in (make(10, 7), make(10, 7), make(10, 7, seed=1))]
    assert deals[0] == deals[1] != deals[2]


def test_reseeding_repeats_the_deals():
    deck = make(10, 7, seed=5)
    first = [deck.deal(range(7)) for _ in range(3)]
    deck.reseed(5)
    assert [deck.deal(range(7)) for _ in range(3)] == first


def test_a_loaded_deck_goes_on_where_the_saved_one_was():
    deck, other = make(10, 7), make(10, 7, seed=1)
    for _ in range(3):
        deck.deal(range(7))
    other.load_state(deck.state())
    for lanes in ([0, 3], [1], range(7)):
        assert deck.deal(lanes) == other.deal(lanes)


def test_the_grid_is_fixed_and_refuses_another_grids_state():
    grid = FixedGrid([(0, 1), (2, 3)])
    assert grid.deal([1, 0]) == grid.deal([1, 0]) == [(2, 3), (0, 1)]
    grid.load_state(grid.state())
    with pytest.raises(ValueError, match="pairs"):
        grid.load_state(FixedGrid([(0, 1)]).state())
