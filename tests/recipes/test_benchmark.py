"""What the benchmark makes of its measurements, and the recipe that it starts. Speed itself is no matter for a test."""

import sys

import numpy as np
import pytest

from htrmrl_torchrl.envs.benchmarks import draw_goals, task_names
from htrmrl_torchrl.envs.metaworld import MetaWorldLanes
from recipes import benchmark
from recipes.benchmark import table
from recipes.configuration.compose import run_recipe
from recipes.speed.environment import Physics, interleaved, ratio
from recipes.speed.learning import _run_recipe


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


@pytest.mark.slow
def test_the_recipe_is_measured_in_a_process_of_its_own():
    small = ["env.num_envs=10", "env.num_workers=0", "env.episodes_per_trial=2", "env.horizon=25"]
    small += ["loss.minibatch_frames=100", "loss.segment_frames=25", "eval.goals_per_task=1", "eval.every_frames=1000"]
    row = _run_recipe("small", small)
    iteration = row["collect s"] + row["update s"]
    assert row["frames/s"] == 500 / iteration
    # An evaluation after every second iteration.
    assert row["evaluation share"] == pytest.approx(row["evaluate s"] / (row["evaluate s"] + 2 * iteration))
    assert 0.1 < row["peak GiB"] < 4 and 0 < row["start-up s"] < 120


@pytest.mark.parametrize(("argument", "received"), [("parts=recipe", "'recipe'"), ("lanes=20", "20")])
def test_a_single_value_for_a_list_is_refused_in_one_sentence(argument, received, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", argument])
    with pytest.raises(SystemExit, match="2"):
        run_recipe(benchmark.run, config_name="benchmark", check=benchmark.check)
    key = argument.split("=")[0]
    assert capsys.readouterr().err == f"error: {key} is {received} but must be a list, as in [1,2]\n"


def test_a_recipe_that_fails_is_no_measurement(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nothing")
    with pytest.raises(RuntimeError, match="ended with exit code 2"):
        _run_recipe("wrong", ["env.num_envs=10"])


@pytest.mark.slow
def test_the_ceiling_is_the_physics_of_the_official_simulators():
    """The same states step by step, so the ceiling leaves out what is around physics and nothing of it."""
    lanes, tasks = np.arange(3), np.arange(3)
    official = MetaWorldLanes(task_names("ML10"), draw_goals("ML10", "train", 0), num_lanes=3, backend="official")
    official.reset(lanes, tasks, np.zeros(3, dtype=np.int64))
    physics = Physics(3)
    for action in np.random.default_rng(0).uniform(-1, 1, (30, 3, 4)).astype(np.float32):
        official.step(action)
        physics.step(action)
        for ours, theirs in zip(physics._lanes._simulators, official._simulators, strict=True):
            np.testing.assert_allclose(ours.data.qpos, theirs.data.qpos, rtol=0, atol=1e-9)
