"""A disk that takes nothing more costs what was to be written, not the run: a real one of a few kilobytes."""

import errno
import json
import os
import resource
import signal
import subprocess

import pytest

from htrmrl_torchrl.checkpoints.archive import check_archive
from htrmrl_torchrl.checkpoints.files import RecordFile, write_whole
from htrmrl_torchrl.runs.loggers import RunLogger
from tests.recipes.runs import FRAMES, TINY, assert_one_curve, frames_on_disk, metrics, start, train_here, wait_for


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for 4 MiB; who may not mount one has the limit on a file's size below."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder, leave=0):
    """Takes all room but `leave` bytes (in whole pages)."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(max(0, file.tell() - leave))
    return ballast


def test_records_wait_for_room(small_disk):
    file = RecordFile(small_disk / "records")
    file.write(b"one\n")
    ballast = fill(small_disk)
    long = b"x" * 5000 + b"\n"  # fits in part: the file's last page is not full
    with pytest.raises(OSError, match="No space left"):
        file.write(long)
    assert (small_disk / "records").read_bytes() == b"one\n"
    with pytest.raises(OSError, match="No space left"):
        file.write(b"three\n")
    ballast.unlink()
    file.write(b"four\n")
    assert (small_disk / "records").read_bytes() == b"one\n" + long + b"three\nfour\n"
    file.close()


def test_a_file_is_replaced_whole_or_not_at_all(small_disk):
    path = small_disk / "report.json"
    write_whole(path, "old")
    fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new" * 5000)
    assert path.read_text() == "old"
    assert sorted(entry.name for entry in small_disk.iterdir()) == ["ballast", "report.json"]


def test_curves_have_no_gap_where_the_disk_was_full_for_a_while(small_disk):
    with RunLogger(small_disk) as logger:
        logger.log({"train/return": 1.0}, frames=FRAMES)
        ballast = fill(small_disk)
        for number in range(2, 300):  # more than what is left of the files' last pages
            try:
                logger.log({"train/return": float(number)}, frames=number * FRAMES)
            except OSError as error:
                assert error.errno == errno.ENOSPC
        held = len(metrics(small_disk))
        assert held < 299
        ballast.unlink()
        logger.log({"train/return": 300.0}, frames=300 * FRAMES)
    assert_one_curve(small_disk, 300 * FRAMES)


@pytest.mark.slow
def test_a_full_disk_ends_saves_and_not_the_run(small_disk):
    run_dir = small_disk / "run"
    process = start(run_dir, "total_frames=1_000_000", f"eval.every_frames={4 * FRAMES}")
    wait_for(lambda: frames_on_disk(run_dir) >= FRAMES, process, "an iteration")
    ballast = fill(small_disk)
    said = ""
    for line in process.stderr:
        said += line
        if "metrics could not be written" in said and "evaluations" in said:
            break
    assert "warning: the checkpoint could not be written (No space left on device); the run continues\n" in said
    assert process.poll() is None
    for path in (run_dir / "checkpoints").glob("*.torchrl"):
        check_archive(path)
    kept = frames_on_disk(run_dir)
    for path in (run_dir / "evaluations").glob("*"):
        json.loads(path.read_text())
    ballast.unlink()
    for path in (run_dir / "checkpoints").glob("best-*"):
        path.unlink()
    wait_for(lambda: frames_on_disk(run_dir) > kept, process, "a save after there was room again")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and "Traceback" not in said + errors, said + errors
    assert_one_curve(run_dir, max(at for at, _, _ in metrics(run_dir)))


@pytest.mark.slow
def test_an_end_that_cannot_be_saved_is_no_success(tmp_path):
    """Nothing longer than 100 kB can be written (EFBIG), as with a quota: saves end and the run goes on, to say so."""
    run_dir = tmp_path / "run"
    process = start(run_dir, f"total_frames={40 * FRAMES}")
    wait_for(lambda: frames_on_disk(run_dir) >= FRAMES, process, "an iteration")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in errors, errors
    assert errors.count("warning: the checkpoint could not be written (File too large); the run continues\n") >= 30
    assert "finished" not in said and not (run_dir / "summary.json").exists()
    last = errors.rstrip().splitlines()[-1]
    assert last.startswith("error: the run has played its 7,680 frames but its last checkpoint could not be written (")
    assert "the same command continues" in last
    kept = frames_on_disk(run_dir)
    assert 0 < kept < 40 * FRAMES
    assert len(os.listdir(run_dir / "evaluations")) == 2
    done = train_here(run_dir, *TINY, f"total_frames={kept + FRAMES}")
    assert "finished" in done and frames_on_disk(run_dir) == kept + FRAMES
    assert_one_curve(run_dir, kept + FRAMES)
    assert json.loads((run_dir / "summary.json").read_text())["progress"]["frames"] == kept + FRAMES


@pytest.mark.slow
def test_where_the_boundary_cannot_be_left_the_exit_code_says_so(tmp_path):
    run_dir = tmp_path / "run"
    process = start(run_dir, "total_frames=1_000_000")
    wait_for(lambda: frames_on_disk(run_dir) >= FRAMES, process, "an iteration")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    wait_for(
        lambda: max(at for at, _, _ in metrics(run_dir)) > frames_on_disk(run_dir), process, "an unsaved iteration"
    )
    kept = frames_on_disk(run_dir)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors.endswith("error: the checkpoint could not be written (File too large); older ones are as they were\n")
    assert frames_on_disk(run_dir) == kept
