"""Hydra's own multirun: each job is the run that its overrides make, all are checked first, and all can be stopped."""

import signal
import sys

import pytest

from recipes import ppo
from recipes.configuration.sweep import sweep
from tests.recipes.runs import FRAMES, TINY, frames_on_disk, metrics, start, train_here, wait_for


def test_each_job_equals_the_run_of_its_own(tmp_path, monkeypatch):
    overrides = [*TINY, f"total_frames={FRAMES}", f"hydra.sweep.dir={tmp_path / 'hydra'}"]
    arguments = ["toy_ppo.py", "-m", "seed=1,2", f"run_dir={tmp_path / 'seed${seed}'}", *overrides]
    monkeypatch.setattr(sys, "argv", arguments)
    sweep(ppo.train, config_name="toy_ppo")
    train_here(tmp_path / "alone", *overrides[:-1], "seed=2")
    second = metrics(tmp_path / "seed2")
    assert second == metrics(tmp_path / "alone") and len(second) > 50
    assert second != metrics(tmp_path / "seed1")  # negative control


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["seed=1,2", "run_dir=x"], ["two jobs have run_dir=x", "run_dir='runs/x_${key}'"]),
        (["seed=1,2", "encoder.window=3,0"], ["encoder.window is 0", "at least 1"]),
        (["seed=interval(0,1)"], ["'seed=interval(0,1)'", "seed=a,b"]),
    ],
)
def test_what_cannot_run_is_refused_before_the_first_job(overrides, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["toy_ppo.py", "--multirun", *overrides])
    with pytest.raises(SystemExit) as ended:
        sweep(ppo.train, config_name="toy_ppo")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and all(part in said for part in parts), said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_signal_ends_the_run_and_the_jobs_after_it(tmp_path):
    first, second = tmp_path / "seed1", tmp_path / "seed2"
    process = start(
        tmp_path / "seed${seed}", "-m", "seed=1,2", "total_frames=1_000_000", f"hydra.sweep.dir={tmp_path / 'hydra'}"
    )
    wait_for(lambda: frames_on_disk(first) >= FRAMES, process, "an iteration")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and "where the iteration began is kept" in errors
    assert not second.exists()
