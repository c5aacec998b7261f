"""A report as text, letter by letter."""

from dataclasses import replace

from htrmrl_torchrl.evaluation import PROTOCOLS
from tests.evaluation.reports import NAN, hand_made, two_runs


def test_the_whole_table_of_two_runs():
    runs = [
        {"checkpoint": f"runs/seed{run}/best.torchrl", "sha256": f"{run}123456789abcdef" * 4, "frames": 20_000_000}
        for run in (1, 2)
    ]
    expected = """\
ML10 test, protocol strict: 1 adaptation + 2 evaluation episodes of 500 steps, mean actions in the latter, 3 goals \
per task (benchmark seed 0)
checkpoint runs/seed1/best.torchrl (20,000,000 frames, sha256 1123456789ab)
checkpoint runs/seed2/best.torchrl (20,000,000 frames, sha256 2123456789ab)

task       success  95% over goals  return  steps to success
alpha         0.50    0.06 to 0.94     156                 6
beta          0.75               -     158                 2
all tasks     0.62               -     157
2 runs, 95% over runs: 0.00 to 1.00

success by episode: 0.42 0.75 0.50"""
    assert str(two_runs(runs=runs)) == expected


def test_one_run_without_a_checkpoint():
    steps = [[[NAN], [NAN], [120], [80]]]
    report = hand_made([[[0], [0], [1], [1]]], steps=steps, task=[0, 0, 1, 1], tasks=["a", "a-much-longer-name-v3"])
    assert str(report).splitlines() == [
        "ML10 test, protocol strict: 0 adaptation + 1 evaluation episodes of 500 steps, mean actions in the latter, "
        "2 goals per task (benchmark seed 0)",
        "",
        "task                   success  95% over goals  return  steps to success",
        "a                         0.00    0.00 to 0.88       0                 -",
        "a-much-longer-name-v3     1.00    0.12 to 1.00       0               100",
        "all tasks                 0.50    0.07 to 0.93       0",
    ]


def test_the_official_evaluators_bias_stands_above_its_numbers():
    nothing = [[[NAN], [NAN]]]
    report = hand_made([[[0.25], [1.0]]], returns=nothing, steps=nothing, protocol=PROTOCOLS["metaworld"])
    lines = str(report).splitlines()
    assert lines[1].startswith("BIASED: the official evaluator counts the first episodes to finish")
    assert lines[4] == "alpha         0.25               -       -                 -"
    garage = str(replace(report, protocol=PROTOCOLS["garage"].changed(evaluation_episodes=1)))
    assert "BIASED" not in garage and "each from the memory of the former" in garage
    assert "each from the memory" not in str(report)
