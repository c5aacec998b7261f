"""Numbers of reports by hand, worked out on paper; what may be compared; JSON in and out."""

import json
import math
import os
import re
from dataclasses import fields, replace

import numpy as np
import pytest

from htrmrl_torchrl.evaluation import PROTOCOLS, EvaluationReport, ProtocolMismatchError
from htrmrl_torchrl.evaluation.intervals import DIFFERENCES, SHARES, interval_over_goals, interval_over_runs
from tests.evaluation.reports import NAN, hand_made, two_runs
from tests.recipes.runs import leaves_a_mark


def assert_equal(received, expected):
    for field in fields(EvaluationReport):
        mine, theirs = getattr(received, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray):
            assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs, equal_nan=mine.dtype == float), (
                field.name
            )
        else:
            assert mine == theirs, field.name


# ------------------------------------------------------------------------------------------------------------ numbers


def test_the_headline_weighs_episodes_runs_and_goals_then_tasks_equally():
    """alpha: (1 + 1/2 + 0 + 1 + 0 + 1/2) / 6, beta: (1/2 + 1) / 2. All eight (run, pair) alike would give 9/16."""
    report = two_runs()
    assert report.task_success() == {"alpha": pytest.approx(0.5, abs=1e-10), "beta": 0.75}
    assert report.success_rate == pytest.approx(0.625, abs=1e-10)


def test_scores_of_each_run_have_runs_before_tasks():
    """Runs differ, and so do tasks; their mean is the headline."""
    scores = two_runs().per_run_scores()
    assert scores == pytest.approx(np.array([[0.5, 0.5], [0.5, 1.0]]), abs=1e-10)
    assert scores.mean() == pytest.approx(two_runs().success_rate, abs=1e-10)
    returns = two_runs(defines_success=False).per_run_scores()
    assert returns.tolist() == [[151.0, 153.0], [161.0, 163.0]]


def test_the_adaptation_curve_weighs_tasks_equally_too():
    """First episode: alpha 2 of 6 and beta 1 of 2; second: 3 of 6 and 2 of 2; third: 3 of 6 and 1 of 2."""
    assert two_runs().success_by_episode() == pytest.approx([5 / 12, 3 / 4, 1 / 2], abs=1e-10)


def test_returns_and_steps_are_those_of_the_episodes_that_count():
    """Returns are 10 * run + pair + 100 * episode; steps of alpha's successes 4 6 10 8 5 3, of beta's 7 1 2."""
    report = two_runs()
    assert report.task_returns() == {"alpha": 156.0, "beta": 158.0}
    assert report.task_steps_to_success() == {"alpha": 5.5, "beta": 2.0}


def test_a_task_without_success_has_no_steps_to_it():
    report = hand_made([[[1], [0]]])
    steps = report.task_steps_to_success()
    assert steps["alpha"] == 1 and np.isnan(steps["beta"])


def test_tasks_that_were_not_played_do_not_count():
    report = hand_made([[[1], [0]]], task=[0, 2], tasks=["alpha", "never played", "gamma"])
    assert report.task_success() == {"alpha": 1.0, "gamma": 0.0}
    assert report.success_rate == 0.5


def test_intervals_over_goals_rest_on_the_goals_means_over_runs_and_episodes():
    """alpha's goals are at 1, 1/4 and 1/4."""
    report = two_runs()
    assert report.task_interval("alpha") == interval_over_goals([np.array([1.0, 0.25, 0.25])], scale=SHARES)
    assert report.task_interval("beta") is None
    assert report.interval() is None  # since beta has one goal


def test_intervals_over_goals_are_stratified_by_task():
    """Half of the goals are solved, in each task or all of one task's: the latter varies less."""
    mixed, apart = (hand_made([s], task=[0, 0, 1, 1]).interval() for s in ([[0], [1], [0], [1]], [[1], [1], [0], [0]]))
    assert mixed == interval_over_goals([np.array([0.0, 1.0])] * 2, scale=SHARES)
    assert apart == interval_over_goals([np.ones(2), np.zeros(2)], scale=SHARES)
    assert mixed[0] < apart[0] < 0.5 < apart[1] < mixed[1]


def test_intervals_over_runs_rest_on_the_runs_headlines():
    """Runs at 1/2 (alpha 1/2, beta 1/2) and 3/4 (1/2, 1): two of them tell nothing that success does not say itself."""
    assert two_runs().interval(over="runs") == interval_over_runs([0.5, 0.75], scale=SHARES) == (0.0, 1.0)
    assert hand_made([[[1], [0]]]).interval(over="runs") is None
    with pytest.raises(ValueError, match=r"over='seeds' is unknown; choose goals or runs"):
        two_runs().interval(over="seeds")


def test_goals_may_be_mixed_and_rows_in_any_order():
    report = hand_made([[[1], [0], [1], [1]]], task=[1, 0, 1, 0])
    assert report.task_success() == {"alpha": 0.5, "beta": 1.0}


def test_a_share_per_task_is_all_that_the_official_evaluator_says():
    nothing = [[[NAN], [NAN]]]
    report = hand_made([[[0.5], [1.0]]], returns=nothing, steps=nothing, protocol=PROTOCOLS["metaworld"])
    assert report.success_rate == 0.75 and report.success_by_episode() == [0.75]
    assert report.interval() is None and np.isnan(report.task_returns()["alpha"])


@pytest.mark.parametrize(
    "fault,message",
    [
        ({"runs": [{"seed": 0}]}, "1 runs of 4 pairs cannot have arrays of shapes"),
        ({"returns": np.zeros((2, 4, 2))}, r"2 runs of 4 pairs cannot have arrays of shapes .*'returns': \(2, 4, 2\)"),
        ({"task": np.array([0, 0, 1])}, "2 runs of 3 pairs cannot"),
        ({"goal": np.array([0, 1, 2])}, "4 tasks and 3 goals do not make pairs"),
        ({"task": np.array([0, 0, 0, 2])}, r"task holds \[0, 2\], but there are 2 tasks"),
        ({"task": np.array([-1, 0, 0, 1])}, r"task holds \[-1, 0, 1\], but there are 2 tasks"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(fault, message):
    with pytest.raises(ValueError, match=message):
        replace(two_runs(), **fault)


# --------------------------------------------------------------------------------------------------------- comparing


MISMATCHES = {
    "protocol": {"protocol": two_runs().protocol.changed(evaluation_actions="sampled")},
    "benchmark": {"benchmark": "ML45"},
    "split": {"split": "val"},
    "benchmark_seed": {"benchmark_seed": 1},
    "horizon": {"horizon": 200},
    "tasks": {"tasks": ["alpha", "gamma"]},
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_reports_made_in_different_ways_do_not_compare(name):
    report, other = two_runs(), replace(two_runs(), **MISMATCHES[name])
    for compare in (report.check_comparable, report.difference, lambda o: EvaluationReport.merge([report, report, o])):
        with pytest.raises(ProtocolMismatchError) as info:
            compare(other)
        received, allowed = getattr(other, name), getattr(report, name)
        assert f"The reports differ in {name}: {allowed} and {received}." in str(info.value)
    assert issubclass(ProtocolMismatchError, ValueError)


@pytest.mark.parametrize("change", [{"goal": np.array([0, 1, 3, 0])}, {"task": np.array([0, 0, 1, 1])}])
def test_reports_on_other_goals_do_not_compare(change):
    with pytest.raises(ProtocolMismatchError, match=r"different \(task, goal\) pairs"):
        two_runs().check_comparable(replace(two_runs(), **change))


def test_who_played_and_when_may_differ():
    other = replace(two_runs(), command="other", versions={"python": "3.12.1"}, runs=[{"seed": 3}, {"seed": 4}])
    two_runs().check_comparable(other)


def test_a_difference_is_paired_by_goal():
    """Both at 1/2: where the same goals are solved nothing varies, where the others are, all does."""
    first = hand_made([[[1], [0], [1], [0]]], task=[0, 0, 1, 1])
    opposite = hand_made([[[0], [1], [0], [1]]], task=[0, 0, 1, 1])
    (same, near), (equal, far) = first.difference(first), first.difference(opposite)
    assert same == equal == 0.0
    assert near == interval_over_goals([np.zeros(2)] * 2, scale=DIFFERENCES) and near[0] == -near[1]
    assert far == interval_over_goals([np.array([-1.0, 1.0])] * 2, scale=DIFFERENCES) and far[0] < near[0]


def test_a_difference_says_how_much_higher_the_other_is():
    """Goals improve by 1 or 0 in each of two tasks."""
    first, better = (hand_made([s], task=[0, 0, 1, 1]) for s in ([[0], [0], [0], [0]], [[1], [0], [1], [0]]))
    interval = interval_over_goals([np.array([1.0, 0.0])] * 2, scale=DIFFERENCES)
    assert first.difference(better) == (0.5, interval)
    difference, (low, high) = better.difference(first)
    assert difference == -0.5 and (-high, -low) == pytest.approx(interval, abs=1e-10)


def test_a_difference_takes_any_number_of_runs():
    twice = EvaluationReport.merge([hand_made([[[1], [0]]]), hand_made([[[0], [0]]])])
    assert hand_made([[[1], [1]]]).difference(twice) == (-0.75, None)


def test_merging_puts_runs_side_by_side():
    both = two_runs()
    parts = [
        replace(
            both,
            runs=[{"seed": run}],
            **{name: getattr(both, name)[run : run + 1] for name in ("success", "returns", "steps_to_success")},
        )
        for run in (0, 1)
    ]
    assert [part.success_rate for part in parts] == pytest.approx([0.5, 0.75], abs=1e-10)
    merged = EvaluationReport.merge(parts)
    assert_equal(merged, replace(both, runs=[{"seed": 0}, {"seed": 1}]))
    more = EvaluationReport.merge([merged, parts[0]])
    assert more.success.shape == (3, 4, 3) and [run["seed"] for run in more.runs] == [0, 1, 0]
    assert_equal(EvaluationReport.merge([both]), both)
    assert parts[0].success.shape == (1, 4, 3)  # the parts stay as they are


# -------------------------------------------------------------------------------------------------------- in and out


def test_what_is_saved_is_what_is_loaded(tmp_path):
    runs = [{"seed": run, "checkpoint": "a/b.torchrl", "sha256": "0f" * 32, "frames": 10**7} for run in (0, 1)]
    report = two_runs(runs=runs)
    path = tmp_path / "new" / "report.json"
    report.save(path)
    assert_equal(EvaluationReport.load(path), report)
    again = tmp_path / "again.json"
    EvaluationReport.load(path).save(again)
    assert again.read_bytes() == path.read_bytes()


def test_a_file_says_what_it_is_to_those_without_the_class(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    report = two_runs(runs=[{"seed": 0, "sha256": "0f" * 32}, {"seed": 1, "sha256": "f0" * 32}])
    report.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert content["protocol"] == {
        "name": "strict",
        "adaptation_episodes": 1,
        "evaluation_episodes": 2,
        "evaluation_actions": "mean",
        "goals_per_task": 3,
        "separate": False,
        "biased": False,
    }
    assert content["summary"] == {"success_rate": report.success_rate, "interval_over_goals": None}
    assert content["steps_to_success"][0][0] == [None, 4, 6]
    assert content["runs"][1]["sha256"] == "f0" * 32
    assert content["versions"] == {"python": "3.11.9"} and content["command"].startswith("python recipes/evaluate.py")


def test_a_report_of_the_official_evaluator_goes_in_and_out(tmp_path):
    nothing = [[[NAN], [NAN]]]
    report = hand_made([[[0.5], [1.0]]], returns=nothing, steps=nothing, protocol=PROTOCOLS["metaworld"])
    report.save(tmp_path / "report.json")
    assert_equal(EvaluationReport.load(tmp_path / "report.json"), report)


def test_numpys_numbers_can_be_saved(tmp_path):
    two_runs(benchmark_seed=np.int64(3), horizon=np.int32(7)).save(tmp_path / "report.json")
    loaded = EvaluationReport.load(tmp_path / "report.json")
    assert (loaded.benchmark_seed, loaded.horizon) == (3, 7)


def test_no_file_is_no_report(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        EvaluationReport.load(tmp_path / "nowhere.json")


def without(name):
    return lambda content: {key: value for key, value in content.items() if key != name}


CORRUPT = {
    "a list": lambda content: [content],
    "a number": lambda content: 3,
    "an empty object": lambda content: {},
    "an unknown field": lambda content: {**content, "colour": "red"},
    "other actions": lambda content: {**content, "protocol": {**content["protocol"], "evaluation_actions": "best"}},
    "an unknown rule": lambda content: {**content, "protocol": {**content["protocol"], "luck": 1}},
    "no protocol": lambda content: {**content, "protocol": None},
    "ragged episodes": lambda content: {**content, "success": [[[1, 0], [1]]]},
    "a word for a number": lambda content: {**content, "returns": "many"},
    "other lengths": lambda content: {**content, "success": content["success"][:1]},
    "success above 1": lambda content: {**content, "success": [[[1.5] * 3] * 4] * 2},
    "success below 0": lambda content: {**content, "success": [[[-0.1] * 3] * 4] * 2},
    "success of null": lambda content: {**content, "success": [[[None] * 3] * 4] * 2},
    "success of truths": lambda content: {**content, "success": [[[True] * 3] * 4] * 2},
    "success of texts": lambda content: {**content, "success": [[["1"] * 3] * 4] * 2},
    "one list too few": lambda content: {**content, "success": content["success"][0]},
    "an infinite return": lambda content: {**content, "returns": [[[1e999] * 3] * 4] * 2},
    "steps from 0": lambda content: {**content, "steps_to_success": [[[0] * 3] * 4] * 2},
    "half a task": lambda content: {**content, "task": [0, 0, 0, 0.5]},
    "a goal without end": lambda content: {**content, "goal": [0, 1, 2, 10**30]},
    "a goal of minus two": lambda content: {**content, "goal": [0, 1, 2, -2]},
    "a benchmark that is no path": lambda content: {**content, "benchmark": "os.path:join()"},
    "a benchmark of numbers": lambda content: {**content, "benchmark": 10},
    "another split": lambda content: {**content, "split": "tset"},
    "a text for a horizon": lambda content: {**content, "horizon": "500"},
    "no horizon": lambda content: {**content, "horizon": None},
    "a seed below 0": lambda content: {**content, "benchmark_seed": -1},
    "tasks of numbers": lambda content: {**content, "tasks": [1, 2]},
    "a task twice": lambda content: {**content, "tasks": ["alpha", "alpha"]},
    "runs of words": lambda content: {**content, "runs": ["one", "two"]},
    "a list of versions": lambda content: {**content, "versions": ["3.11"]},
    "a number for a command": lambda content: {**content, "command": 3},
    "a text for a rule": lambda content: {**content, "protocol": {**content["protocol"], "goals_per_task": "3"}},
    "a word for a flag": lambda content: {**content, "protocol": {**content["protocol"], "separate": "no"}},
    "pairs of one more task": lambda content: {**content, "task": [0, 0, 0, 2]},
    **{f"without {name}": without(name) for name in ("success", "runs", "protocol", "summary", "tasks", "goal")},
}


@pytest.mark.parametrize("fault", CORRUPT)
def test_a_corrupt_report_is_refused_by_name(fault, tmp_path):
    two_runs().save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    path = tmp_path / "corrupt.json"
    path.write_text(json.dumps(CORRUPT[fault](content)))
    with pytest.raises(ValueError, match=r"corrupt\.json is not an evaluation report"):
        EvaluationReport.load(path)


def test_a_benchmark_of_ones_own_is_not_imported_to_read_its_report(tmp_path, monkeypatch):
    path, mark = leaves_a_mark(tmp_path, monkeypatch)
    two_runs().save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "own.json").write_text(json.dumps({**content, "benchmark": path}))
    report = EvaluationReport.load(tmp_path / "own.json")
    assert report.benchmark == path and report.has_success and str(report)
    assert not mark.exists()


def written(tmp_path, report):
    report.save(tmp_path / "whole.json")
    return (tmp_path / "whole.json").read_bytes()


SPOILT = {
    "a key twice": lambda content: content.replace(b'"horizon": 500', b'"horizon": 500, "horizon": 5'),
    "NaN": lambda content: content.replace(b"null", b"NaN"),
    "not UTF-8": lambda content: content.replace(b"alpha", b"alph\xff"),
    "100,000 levels": lambda content: b"[" * 100_000 + b"]" * 100_000,
    "100 levels": lambda content: content.replace(
        b'"versions": {', b'"versions": {"x": ' + b"[" * 100 + b"]" * 100 + b","
    ),
    "a number of 10,000 digits": lambda content: content.replace(b'"horizon": 500', b'"horizon": ' + b"5" * 10_000),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_file_that_is_not_quite_json_is_refused_by_name(fault, tmp_path):
    content = written(tmp_path, two_runs())
    assert SPOILT[fault](content) != content
    (tmp_path / "spoilt.json").write_bytes(SPOILT[fault](content))
    with pytest.raises(ValueError, match=r"spoilt\.json is not an evaluation report"):
        EvaluationReport.load(tmp_path / "spoilt.json")


def test_what_is_no_file_is_no_report(tmp_path):
    """A pipe would wait for a writer, and a device might never end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero", tmp_path / ("x" * 300)):
        with pytest.raises(ValueError, match="is not an evaluation report"):
            EvaluationReport.load(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xfe\x00PK", b'{"benchmark": "ML10", "spl'])
def test_another_file_is_refused_by_name(content, tmp_path):
    path = tmp_path / "foreign.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"foreign\.json is not an evaluation report"):
        EvaluationReport.load(path)


def test_where_there_is_no_success_the_headline_is_the_return(tmp_path):
    """Two goals, two runs; one episode to adapt and one that counts, whose returns are 10, 30 and 20, 40."""
    returns = [[[1, 10], [2, 30]], [[3, 20], [4, 40]]]
    about = {"task": [0, 0], "tasks": ["Ant-Dir"], "benchmark": "Ant-Dir", "adaptation_episodes": 1}
    report = hand_made(np.zeros((2, 2, 2)), returns=returns, **about)
    assert report.headline == 25.0 and not report.has_success
    assert report.return_by_episode() == [2.5, 25.0]
    reach = 10 * math.tan(0.475 * math.pi)  # goals score 15 and 35; Student's t with one degree of freedom
    assert report.interval() == pytest.approx((25 - reach, 25 + reach), rel=1e-10)
    better = hand_made(np.zeros((2, 2, 2)), returns=np.array(returns) + 5.0, **about)
    assert report.difference(better)[0] == 5.0
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["summary"]["return"] == 25.0
    text = str(EvaluationReport.load(tmp_path / "report.json"))
    assert "success" not in text and "return by episode: 2.5 25.0" in text
    assert re.search(r"all tasks +25\.00 +-102\.06 to 152\.06", text)
