"""One run in a run folder: the second start is refused by the first one's number, whatever stopped runs have left."""

import errno
import fcntl
import json
import os
import re
import subprocess
import sys

import pytest

from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.runs.lock import holder as holder_of
from htrmrl_torchrl.runs.lock import locked
from tests.recipes.runs import FRAMES, ROOT, frames_on_disk, python_path, run, start, wait_for

# Waits for a start signal, takes the lock, says so, and keeps it until its stdin is closed.
HOLDER = """
import sys
from pathlib import Path
from htrmrl_torchrl.runs.lock import locked
from htrmrl_torchrl.faults import UserError
input()
try:
    with locked(Path(sys.argv[1])):
        print("mine", flush=True)
        sys.stdin.read()
except UserError as error:
    print(error, flush=True)
"""


def holder(run_dir):
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": python_path(ROOT)},
    )  # fmt: skip


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


def test_the_second_is_refused_by_the_number_of_the_first(tmp_path):
    first = holder(tmp_path)
    go(first)
    assert first.stdout.readline() == "mine\n"
    sentence = f"run_dir '{tmp_path}' is in use by process {first.pid}: stop it, or choose another run_dir"
    with pytest.raises(UserError, match=re.escape(sentence)), locked(tmp_path):
        raise AssertionError("there are two")
    first.kill()
    first.communicate()
    assert (tmp_path / ".lock").exists()  # a killed run's, which locks nothing
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_who_runs_in_a_folder_can_be_asked(tmp_path):
    assert holder_of(tmp_path / "none") is None
    process = holder(tmp_path)
    go(process)
    assert process.stdout.readline() == "mine\n"
    assert holder_of(tmp_path) == f"process {process.pid}"
    process.kill()
    process.communicate()
    assert (tmp_path / ".lock").exists() and holder_of(tmp_path) is None


def test_the_lock_of_a_run_in_another_folder_of_this_name_stays(tmp_path):
    with locked(tmp_path / "run"):
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".lock").write_text("theirs")
    assert (tmp_path / "run" / ".lock").read_text() == "theirs"


@pytest.mark.parametrize("left", ["", "{", ' {"pid": 1, "host": "elsewhere", "started": "7"}'])
def test_what_a_lock_file_says_locks_nothing(left, tmp_path):
    (tmp_path / ".lock").write_text(left)
    with locked(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_said_in_one_sentence(number, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "run"):
        assert holder_of(tmp_path / "run") is None
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"warning: {tmp_path / 'run'} is on a file system without locks, so a second run")
    assert list(tmp_path.iterdir()) == []


def test_a_reused_number_is_not_named(tmp_path):
    """The file of a killed run names a process that runs, but another one; the holder has not signed yet."""
    stale = {"pid": os.getpid(), "host": os.uname().nodename, "started": "1"}
    (tmp_path / ".lock").write_text(f" {json.dumps(stale)}")
    with (tmp_path / ".lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"in use by another process"), locked(tmp_path):
            raise AssertionError("there are two")


def test_of_many_that_start_together_one_runs(tmp_path):
    for _ in range(3):
        processes = [holder(tmp_path / "new" / "run") for _ in range(4)]
        for process in processes:
            go(process)
        answers = [process.stdout.readline() for process in processes]
        (winner,) = (p for p, answer in zip(processes, answers, strict=True) if answer == "mine\n")
        refused = [answer for answer in answers if answer != "mine\n"]
        assert len(refused) == 3 and all(f"is in use by process {winner.pid}:" in answer for answer in refused)
        for process in processes:
            process.communicate("")
        assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_folders_that_were_made_for_nothing_are_gone(tmp_path):
    with locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run").is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine" / "run"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_unwritable_folder_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(UserError, match=r"/proc/runs.* cannot be written"), locked(ROOT.__class__("/proc/runs")):
        raise AssertionError("/proc takes folders")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"), locked(tmp_path / "file" / "run"):
        raise AssertionError("a file takes folders")
    with pytest.raises(UserError, match=r"File name too long"), locked(tmp_path / ("x" * 300)):
        raise AssertionError("there are such names")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_a_second_recipe_is_refused_and_changes_nothing(tmp_path):
    """Also by a run whose environment workers outlive nothing: they do not inherit the lock."""
    run_dir = tmp_path / "run"
    first = start(run_dir, "total_frames=1_000_000", "env.num_workers=2")
    wait_for(lambda: frames_on_disk(run_dir) >= FRAMES, first, "an iteration")
    refused = run(run_dir, "total_frames=1_000_000", code=2)
    assert refused.stderr == (
        f"error: run_dir '{run_dir}' is in use by process {first.pid}: stop it, or choose another run_dir\n"
    )
    assert first.poll() is None
    first.kill()
    first.communicate()
    kept = frames_on_disk(run_dir)
    assert "continuing" in run(run_dir, f"total_frames={kept + FRAMES}").stdout
