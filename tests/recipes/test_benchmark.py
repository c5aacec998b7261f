"""What the benchmark makes of its measurements, and the recipe that it starts. Speed itself is no matter for a test."""

import pytest

from recipes._benchmark_environment import interleaved, ratio
from recipes._benchmark_learning import _run_recipe
from recipes.benchmark import table


def test_contenders_take_turns():
    turns = []

    def contender(name, speeds):
        return lambda: turns.append(name) or speeds.pop(0)

    measured = interleaved({"a": contender("a", [1.0, 2.0]), "b": contender("b", [4.0, 5.0])}, rounds=2)
    assert turns == ["a", "b", "a", "b"]
    assert measured == {"a": [1.0, 2.0], "b": [4.0, 5.0]}


def test_ratios_are_medians_within_rounds():
    """The machine halves its speed in the second round; the ratio of medians, 15 / 10, would say otherwise."""
    measured = {"fast": [30.0, 15.0, 12.0], "slow": [10.0, 5.0, 12.0]}
    assert ratio(measured, "fast", "slow") == 3.0


def test_the_table_leaves_single_measurements_out():
    rows = [{"name": "a", "x": 1.234, "measured": [1.0]}, {"name": "bb", "x": 12345.6, "measured": [2.0]}]
    assert [line.split() for line in table(rows).splitlines()] == [["name", "x"], ["a", "1.23"], ["bb", "12,346"]]


def test_the_recipe_is_measured_in_a_process_of_its_own():
    small = ["env.num_envs=10", "env.num_workers=0", "env.episodes_per_trial=2", "env.horizon=25"]
    row = _run_recipe("small", 500, [*small, "loss.minibatch_frames=100", "loss.segment_frames=25"])
    assert len(row["measured"]) == 1  # of three iterations neither the first nor the last
    assert row["frames/s"] == row["measured"][0] <= 500 / (row["collect s"] + row["update s"])
    assert 0.1 < row["peak GiB"] < 4 and 0 < row["start-up s"] < 120


def test_a_recipe_that_fails_is_no_measurement():
    with pytest.raises(RuntimeError, match="ended with exit code 2"):
        _run_recipe("wrong", 500, ["env.horizon=0"])
