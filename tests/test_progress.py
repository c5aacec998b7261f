"""Where stderr is no terminal, progress is few lines, each a whole one."""

import os
import re
import subprocess
import sys
import time

import pytest

from htrmrl_torchrl import progress
from htrmrl_torchrl.progress import progress_bar

LINE = re.compile(r"\d+%, [\d.k]+ of [\d.k]+ frames, \S+ ?frames/s(, success \d\.\d\d)?, [\d:?]+ left")


def through_a_pipe(work):
    """The lines that `work(stream)` writes into a real pipe."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        work(stream)
    with os.fdopen(read) as stream:
        text = stream.read()
    assert "\r" not in text and "\x1b" not in text and (not text or text.endswith("\n"))
    return text.splitlines()


def test_many_updates_are_a_line_at_the_start_and_one_at_the_end():
    def work(stream):
        with progress_bar(total=50_000, unit=" frames", unit_scale=True, file=stream) as bar:
            for _ in range(50_000):
                bar.set_postfix_str("success 0.50", refresh=False)
                bar.update()

    first, last = through_a_pipe(work)
    assert first.startswith("0%, 0.00 of 50.0k frames, ") and last.startswith("100%, 50.0k of 50.0k frames, ")
    assert LINE.fullmatch(last) and ", success 0.50, 00:00 left" in last


def test_a_line_comes_whenever_the_interval_is_over(monkeypatch):
    assert progress.SECONDS == 30
    monkeypatch.setattr(progress, "SECONDS", 0.05)
    start = time.monotonic()

    def work(stream):
        with progress_bar(total=None, desc="recipe", bar_format="{desc} {elapsed}", file=stream) as bar:
            while time.monotonic() < start + 0.5:
                bar.update(0)

    lines = through_a_pipe(work)
    assert 4 <= len(lines) <= (time.monotonic() - start) / 0.05 + 2
    assert all(re.fullmatch(r"recipe 00:\d\d", line) for line in lines)


def test_on_a_terminal_it_is_a_bar():
    master, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream, progress_bar(total=10, file=stream) as bar:
        bar.update(10)
        stream.flush()
        drawn = os.read(master, 4096).decode()
    os.close(master)
    assert "\r" in drawn and "|" in drawn


@pytest.mark.slow
def test_training_and_evaluation_write_few_whole_lines_into_a_pipe(tmp_path):
    run = [f"run_dir={tmp_path / 'run'}", "total_frames=20_000", "env.num_workers=0", "eval.every_frames=20_000"]
    for command in (["toy_ppo.py", *run], ["evaluate.py", f"checkpoint={tmp_path / 'run'}", "goals_per_task=1"]):
        done = subprocess.run(
            [sys.executable, f"recipes/{command[0]}", *command[1:]], capture_output=True, text=True, check=True
        )
        assert "\r" not in done.stderr and done.stderr.endswith("\n")
        shown = [line for line in done.stderr.splitlines() if "left" in line]
        assert 2 <= len(shown) <= 20 and all(LINE.fullmatch(line) for line in shown), done.stderr
        assert shown[-1].startswith("100%")
