"""How a run takes over its folder: all is checked before anything is deleted, and unreadable is not absent."""

import json
import os
import re
import resource
import shutil
import subprocess
from contextlib import contextmanager

import pytest

from recipes.configuration.run_folder import read_summary
from tests.recipes.runs import (
    FRAMES,
    TINY,
    assert_one_curve,
    command,
    curve,
    frames_on_disk,
    metrics,
    obey_permissions,
    train_here,
)  # fmt: skip

TOTAL = 3 * FRAMES
NAMED = [*TINY, f"total_frames={TOTAL}", "checkpoint.keep=2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    train_here(run_dir, *NAMED)
    return run_dir


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(whole, tmp_path / "run", symlinks=True)


def content(folder):
    """All that is in a folder: bytes, links, times of change."""
    return {
        path.relative_to(folder): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def refusal(run_dir, capsys, *overrides):
    with pytest.raises(SystemExit) as ended:
        train_here(run_dir, *NAMED, *overrides)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    return said


# ------------------------------------------------------------------------------------------ results and no checkpoint


def deleted(checkpoints):
    shutil.rmtree(checkpoints)


def not_mounted(checkpoints):
    shutil.rmtree(checkpoints)
    checkpoints.symlink_to("/not/mounted")


def emptied(checkpoints):
    for path in checkpoints.iterdir():
        path.unlink()


def only_the_best(checkpoints):
    for path in checkpoints.glob("step-*"):
        path.unlink()


def renamed(checkpoints):
    for path in checkpoints.glob("step-*"):
        path.rename(path.with_name(f"old-{path.name}"))


def a_file(checkpoints):
    shutil.rmtree(checkpoints)
    checkpoints.touch()


def dead_links(checkpoints):
    for path in checkpoints.glob("step-*"):
        path.unlink()
        path.symlink_to("/not/mounted")


WITHOUT = {
    deleted: ["summary.json, metrics.csv, evaluations", "put its checkpoints back", "choose another run_dir"],
    not_mounted: ["checkpoints cannot be read (No such file or directory)", "mounted"],
    emptied: ["no checkpoints/step-*"],
    only_the_best: [f"checkpoints/best-{TOTAL:012d}.torchrl", f"resume={{run}}/checkpoints/best-{TOTAL:012d}.torchrl"],
    renamed: ["checkpoints/old-step"],
    a_file: ["checkpoints cannot be read (Not a directory)"],
    dead_links: ["no whole checkpoint", "a link to nothing"],
}


@pytest.mark.parametrize("spoil", WITHOUT, ids=lambda spoil: spoil.__name__)
def test_results_without_a_checkpoint_are_never_started_over(spoil, finished, capsys):
    spoil(finished / "checkpoints")
    before = content(finished)
    said = refusal(finished, capsys)
    assert all(part.format(run=finished) in said for part in WITHOUT[spoil]), said
    assert content(finished) == before


@pytest.mark.parametrize("kept", ["summary.json", "metrics.csv", "evaluations", "checkpoints"])
def test_any_of_them_alone_is_enough(kept, finished, capsys):
    only_the_best(finished / "checkpoints")
    for path in finished.iterdir():
        if path.name != kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = content(finished)
    assert kept in refusal(finished, capsys)
    assert content(finished) == before


def test_the_best_one_goes_on_where_the_sentence_says_so(whole, finished, capsys):
    only_the_best(finished / "checkpoints")
    (resume,) = re.findall(r"resume=(\S+),", refusal(finished, capsys))
    train_here(finished, *NAMED, f"total_frames={TOTAL + FRAMES}", f"resume={resume}")
    assert frames_on_disk(finished) == TOTAL + FRAMES
    assert metrics(finished)[: len(metrics(whole))] == metrics(whole)
    assert_one_curve(finished, TOTAL + FRAMES)


def test_a_table_without_rows_is_no_result(tmp_path):
    """A run that was killed before its first iteration ended left one before runs saved where they begin."""
    tmp_path.joinpath("metrics.csv").write_text("frames,metric,value\n")
    train_here(tmp_path, *TINY, f"total_frames={FRAMES}")
    assert_one_curve(tmp_path, FRAMES)


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["checkpoints", "newest"])
def test_what_may_not_be_read_is_not_absent(closed, whole, finished):
    """In a real process, which has to obey permissions."""
    path = finished / "checkpoints"
    path = path if closed == "checkpoints" else path / f"step-{TOTAL:012d}.torchrl"
    before = content(finished)
    path.chmod(0)
    done = subprocess.run(
        command(finished, *NAMED), capture_output=True, text=True, timeout=300, preexec_fn=obey_permissions
    )
    if closed == "checkpoints":
        path.chmod(0o755)
        assert done.returncode == 2 and "checkpoints cannot be read (Permission denied)" in done.stderr
        assert done.stderr.count("\n") == 1 and content(finished) == before
    else:
        assert done.returncode == 0 and "cannot be read: Permission denied" in done.stderr, done.stderr
        assert metrics(finished) == metrics(whole)


# ----------------------------------------------------------------------------------------------- damaged, and going on


@pytest.mark.parametrize("newest", ["a link to nothing", "a folder"])
def test_an_unreadable_checkpoint_is_named_and_the_one_before_it_used(newest, whole, finished, capsys):
    path = finished / "checkpoints" / f"step-{TOTAL:012d}.torchrl"
    path.unlink()
    path.mkdir() if newest == "a folder" else path.symlink_to("/not/mounted")
    train_here(finished, *NAMED)
    said = capsys.readouterr().err
    assert f"warning: {path} is damaged" in said and "now called damaged-step" in said
    assert os.path.lexists(path.with_name(f"damaged-{path.name}"))
    assert metrics(finished) == metrics(whole)


SUMMARIES = {
    "empty": b"", "cut": b'{"progress": {"frames": 5', "another encoding": b'{"progress": "\xe9"}', "a list": b"[]",
    "nothing of a run": b"{}", "words": b'{"progress": {"frames": "many"}, "metrics": {}}',
    "no numbers": b'{"progress": {"frames": 576}, "metrics": {"train/return": "high"}}', "deep": b"[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("case", SUMMARIES)
def test_a_damaged_summary_is_said_to_be(case, tmp_path):
    assert read_summary(tmp_path) is None
    (tmp_path / "summary.json").write_bytes(SUMMARIES[case])
    with pytest.raises(ValueError, match=r"summary.json is damaged \(not a run's summary\)"):
        read_summary(tmp_path)


@pytest.mark.parametrize("kind", ["a link to nothing", "a folder"])
def test_an_unreadable_summary_is_not_an_absent_one(kind, tmp_path):
    path = tmp_path / "summary.json"
    path.mkdir() if kind == "a folder" else path.symlink_to("/not/mounted")
    with pytest.raises(ValueError, match="is damaged"):
        read_summary(tmp_path)


def test_damaged_side_files_stop_no_run_and_are_rebuilt(whole, finished, capsys):
    """All of them at once: summary, a short row of the curve, settings, an odd name among the event files."""
    rebuilt = json.loads((finished / "summary.json").read_text())["metrics"]
    (finished / "summary.json").write_bytes(b"")
    lines = (finished / "metrics.csv").read_text().splitlines(keepends=True)
    (finished / "metrics.csv").write_text("".join([*lines[:3], "192,train/success\n", *lines[3:]]))
    (finished / "config.yaml").write_bytes(b"\xff: [")
    (finished / "tensorboard" / "events.out.tfevents.\u00b2").touch()
    (finished / ".config.yaml.stage").touch()  # of a kill
    (finished / "evaluations" / f".val_{TOTAL:012d}.json.stage").touch()
    (finished / "evaluations" / "val_x.json").touch()  # of the user
    train_here(finished, *NAMED)
    said = capsys.readouterr().err
    assert "summary.json is damaged (not a run's summary) and now called damaged-summary.json" in said
    assert "metrics.csv has rows that cannot be read" in said and "damaged-metrics.csv" in said
    assert metrics(finished) == metrics(whole)
    assert json.loads((finished / "summary.json").read_text())["metrics"] == rebuilt
    assert (finished / "config.yaml").read_text() == (whole / "config.yaml").read_text().replace(
        str(whole), str(finished)
    )
    assert not list(finished.rglob("*.stage")) and (finished / "evaluations" / "val_x.json").exists()
    assert {"damaged-summary.json", "damaged-metrics.csv"} <= {path.name for path in finished.iterdir()}


@pytest.mark.parametrize("kind", ["a link to nothing", "a folder"])
def test_a_curve_that_cannot_be_read_is_set_aside(kind, finished, capsys):
    path = finished / "metrics.csv"
    path.unlink()
    path.mkdir() if kind == "a folder" else path.symlink_to("/not/mounted")
    train_here(finished, *NAMED, f"total_frames={TOTAL + FRAMES}")
    assert "metrics.csv cannot be read" in capsys.readouterr().err
    assert os.path.lexists(finished / "damaged-metrics.csv")
    assert {at for at, _, _ in metrics(finished)} == {TOTAL + FRAMES}
    assert len(curve(finished)) == TOTAL // FRAMES + 1  # TensorBoard has all of it


# --------------------------------------------------------------------------------------------- the order of taking over


@contextmanager
def nothing_larger_than(size):
    """A limit of this process on the size of files, as a full disk has (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_new_run_that_cannot_save_is_refused_and_leaves_nothing(tmp_path, capsys):
    with nothing_larger_than(100_000):
        assert "cannot be written: File too large" in refusal(tmp_path / "new" / "run", capsys)
    assert list(tmp_path.iterdir()) == []


def test_going_back_on_a_full_disk_changes_nothing(finished, capsys):
    older = min((finished / "checkpoints").glob("step-*"))
    before = content(finished)
    with nothing_larger_than(100_000):
        assert "File too large" in refusal(finished, capsys, f"resume={older}")
    assert content(finished) == before


def test_checkpoints_go_back_before_the_curve(whole, finished, capsys):
    """What ends the start between the two leaves rows beyond the checkpoint, never a hole before it."""
    older = min((finished / "checkpoints").glob("step-*"))
    obstacle = finished / "evaluations" / f"val_{2 * TOTAL:012d}.json"
    obstacle.mkdir()  # cannot be deleted as a file can
    rows = metrics(finished)
    assert "cannot be written" in refusal(finished, capsys, f"resume={older}")
    assert frames_on_disk(finished) == TOTAL - FRAMES and metrics(finished) == rows
    obstacle.rmdir()
    train_here(finished, *NAMED)
    assert metrics(finished) == metrics(whole)
    assert_one_curve(finished, TOTAL)


def test_going_back_to_a_checkpoint_of_another_run_deletes_nothing_of_this_one(finished, tmp_path, capsys):
    """The checkpoint fits the command, but not what is in the folder."""
    train_here(tmp_path / "other", *TINY, "seed=2", f"total_frames={FRAMES}")
    before = content(finished)
    (checkpoint,) = (tmp_path / "other" / "checkpoints").glob(f"step-{FRAMES:012d}*")
    capsys.readouterr()
    said = refusal(finished, capsys, "seed=2", f"resume={checkpoint}")
    assert f"{finished} holds a run with seed=1 and this one has seed=2" in said
    assert content(finished) == before
