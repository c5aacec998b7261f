"""Nothing that is printed can end a run: stdout and stderr closed, full, or without a reader."""

import os
import signal
import subprocess
import sys

import pytest

from tests.recipes.runs import FRAMES, ROOT, command, frames_on_disk, python_path

# Prints more than a pipe and a buffer hold, on both, and leaves what a later flush would write.
TALKATIVE = """
import os, sys, warnings
from htrmrl_torchrl.runs.console import say, unfailing_output
with unfailing_output():
    for _ in range(3):
        print("x" * 100_000)
        print("x" * 100_000, file=sys.stderr, flush=True)
        say("y" * 100_000)
    with open(sys.argv[1], "w") as file:
        assert file.fileno() > 2  # not the number of a stream that was closed
        os.write(1, b"from below Python") if sys.argv[2] == "closed" else None
        file.write("whole")
    print("the last words")
"""
WAYS = {"closed": "{stream}>&-", "full": "{stream}>/dev/full", "unread": "{stream}> >(true)"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("streams", [[1], [2], [1, 2]], ids=["stdout", "stderr", "both"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_goes_nowhere_changes_nothing(way, streams, unbuffered, tmp_path):
    redirected = " ".join(WAYS[way].format(stream=stream) for stream in streams)
    path = tmp_path / "file"
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {redirected}', "bash", sys.executable, "-c", TALKATIVE, str(path), way],
        env={**os.environ, "PYTHONPATH": python_path(ROOT), "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert path.read_text() == "whole"
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


def test_plain_printing_would_fail():
    """The control: without the guard the same ends with an error."""
    unguarded = TALKATIVE.replace("unfailing_output()", "open('/dev/null')")
    done = subprocess.run(
        ["bash", "-c", 'exec "$@" >/dev/full', "bash", sys.executable, "-c", unguarded, "/dev/null", "full"],
        env={**os.environ, "PYTHONPATH": python_path(ROOT)},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode != 0


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("closed", marks=pytest.mark.slow),
        pytest.param("full", marks=pytest.mark.slow),
        pytest.param("unread", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_saved_is_no_failure(way, tmp_path):
    redirected = " ".join(WAYS[way].format(stream=stream) for stream in (1, 2))
    run_dir = tmp_path / "run"
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {redirected}', "bash", *command(run_dir, f"total_frames={FRAMES}")],
        timeout=300,
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL),
    )
    assert done.returncode == 0
    assert frames_on_disk(run_dir) == FRAMES and (run_dir / "summary.json").exists()


@pytest.mark.slow
def test_a_mistake_is_one_whatever_becomes_of_the_sentence(tmp_path):
    for redirected in ("2>&-", "2>/dev/full"):
        done = subprocess.run(
            ["bash", "-c", f'exec "$@" {redirected}', "bash", *command(tmp_path / "run", "encoder.window=0")],
            timeout=300,
        )
        assert done.returncode == 2
