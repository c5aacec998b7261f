"""A benchmark without success, from training to evaluation."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ["env.num_envs=4", "env.num_workers=2", "env.horizon=10", "loss.minibatch_frames=40", "loss.segment_frames=10"]


def run(recipe, *overrides):
    command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.slow
def test_training_and_evaluation_report_returns(tmp_path):
    folder = tmp_path / "run"
    out = run("locomotion_ppo", f"run_dir={folder}", "total_frames=360", "eval.every_frames=120", *TINY)
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [(int(row["frames"]), row["metric"], float(row["value"])) for row in csv.DictReader(file)]
    names = {name for _, name, _ in rows}
    assert {"train/return", "train/return_by_episode/1", "eval/val_return", "eval/test_return_by_episode/2"} <= names
    assert not any("success" in name for name in names) and "success" not in out
    assert out.count("return ") == 3 and "note: " not in out  # the episode that counts is one that training has
    val = {frames: value for frames, name, value in rows if name == "eval/val_return"}
    assert len(val) == 3 and max(val.values()) < -1  # which is how the best one is chosen, below any success
    (best,) = (folder / "checkpoints").glob("best-*")
    assert int(best.stem.rpartition("-")[2]) == max(val, key=val.get)
    table = run("evaluate", f"checkpoint={folder}", "goals_per_task=3", "num_envs=3", "horizon=10")
    assert "HalfCheetah-Vel test, protocol strict" in table and "success" not in table
    assert "note: a trial has 11 episodes here; in training it had 3\n" in table
    (report,) = (folder / "evaluations").glob("HalfCheetah-Vel_test_strict*.json")
    assert json.loads(report.read_text())["summary"]["return"] < -1
    assert len(list((folder / "evaluations").glob("*.png"))) == 2
