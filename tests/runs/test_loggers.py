"""RunLogger: what is logged can be read back, and a continued run leaves one curve without overlap."""

import csv
import io
import math
from contextlib import closing
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from htrmrl_torchrl.runs.loggers import EventFile, RunLogger

matplotlib.use("Agg")
from matplotlib import pyplot


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()


def steps(run_dir: Path, name: str) -> list[int]:
    return [event.step for event in events(run_dir).Scalars(name)]


def rows(run_dir: Path) -> list[tuple[int, str, float]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [(int(row["frames"]), row["metric"], float(row["value"])) for row in csv.DictReader(file)]


def interrupted_run(run_dir: Path) -> None:
    """A run that logged at 0, 100, ..., 500, an hour ago (event files are ordered by the second in their name)."""
    with RunLogger(run_dir) as logger:
        for frames in range(0, 600, 100):
            logger.log({"train/success": frames / 1000}, frames=frames)
    for file in (run_dir / "tensorboard").iterdir():
        prefix, _, rest = file.name.partition(".tfevents.")
        seconds, _, suffix = rest.partition(".")
        file.rename(file.with_name(f"{prefix}.tfevents.{int(seconds) - 3600}.{suffix}"))


def test_scalars_can_be_read_back_from_both_files(tmp_path: Path) -> None:
    with RunLogger(tmp_path / "new" / "run") as logger:
        logger.log({"train/success": 0.1, "train/return": -3.0}, frames=10)
        logger.log({"train/success": 1 / 3}, frames=20)
    run_dir = tmp_path / "new" / "run"
    assert rows(run_dir) == [
        (10, "train/success", 0.1),
        (10, "train/return", -3.0),
        (20, "train/success", 1 / 3),  # CSV keeps every digit
    ]
    scalars = events(run_dir).Scalars("train/success")
    assert [event.step for event in scalars] == [10, 20]
    assert [event.value for event in scalars] == pytest.approx([0.1, 1 / 3], abs=1e-7)  # TensorBoard stores float32


def test_every_call_reaches_the_disk(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.log({"loss/total": 1.5}, frames=7)
    assert rows(tmp_path) == [(7, "loss/total", 1.5)]  # not closed yet
    assert steps(tmp_path, "loss/total") == [7]
    logger.close()
    logger.close()


def test_non_finite_values_are_written_as_they_are(tmp_path: Path) -> None:
    with RunLogger(tmp_path) as logger:
        logger.log({"loss/actor": math.nan, "loss/critic": math.inf}, frames=1)
    values = {name: value for _, name, value in rows(tmp_path)}
    assert math.isnan(values["loss/actor"]) and values["loss/critic"] == math.inf
    assert math.isnan(events(tmp_path).Scalars("loss/actor")[0].value)


def test_a_value_that_is_no_number_writes_nothing(tmp_path: Path) -> None:
    with RunLogger(tmp_path) as logger, pytest.raises(ValueError):
        logger.log({"good": 1.0, "bad": "text"}, frames=1)  # type: ignore[dict-item]
    assert rows(tmp_path) == []


def test_text_and_figures(tmp_path: Path) -> None:
    figure, axes = pyplot.subplots()
    axes.plot([0, 1])
    with RunLogger(tmp_path) as logger:
        logger.log_text("config", "seed: 1")
        logger.log_figure("adaptation", figure, 30)
    read = events(tmp_path)
    assert read.Tensors("config/text_summary")[0].tensor_proto.string_val[0] == b"seed: 1"
    assert [image.step for image in read.Images("adaptation")] == [30]


def test_a_video_can_be_read_back(tmp_path: Path) -> None:
    shades = (0, 120, 240)
    pictures = np.stack([np.full((6, 8, 3), shade, np.uint8) for shade in shades])
    with closing(EventFile(tmp_path / "tensorboard")) as file:
        file.add_video("video/reach", pictures, frames=40, fps=10)
        read = events(tmp_path)  # it is on the disk before the file is closed
    (event,) = read.Images("video/reach")
    assert (event.step, event.width, event.height) == (40, 8, 6)
    gif = Image.open(io.BytesIO(event.encoded_image_string))
    assert gif.format == "GIF" and gif.n_frames == 3
    for number, shade in enumerate(shades):
        gif.seek(number)
        assert gif.info["duration"] == 100  # milliseconds
        decoded = np.asarray(gif.convert("RGB"), np.int16)
        assert decoded.shape == (6, 8, 3) and np.abs(decoded - shade).max() <= 2  # one palette of 256 colours for all


@pytest.mark.parametrize("wrong", [np.zeros((2, 6, 8), np.uint8), np.zeros((2, 6, 8, 3)), np.zeros((0, 6, 8, 3), "u1")])
def test_what_is_no_video_writes_nothing(tmp_path: Path, wrong: np.ndarray) -> None:
    refused = pytest.raises(ValueError, match=r"A video is uint8 \[n, H, W, 3\]")
    with closing(EventFile(tmp_path / "tensorboard")) as file, refused:
        file.add_video("video/reach", wrong, frames=40, fps=10)
    assert events(tmp_path).Tags()["images"] == []


def test_a_new_run_refuses_a_used_folder(tmp_path: Path) -> None:
    interrupted_run(tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(ValueError, match="already holds the metrics"):
        RunLogger(tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_continued_run_leaves_one_curve(tmp_path: Path) -> None:
    interrupted_run(tmp_path)
    with RunLogger(tmp_path, resume_from_frames=200) as logger:
        for frames in (300, 450):
            logger.log({"train/success": 0.9}, frames=frames)
    expected = [(0, 0.0), (100, 0.1), (200, 0.2), (300, 0.9), (450, 0.9)]
    assert [(frames, value) for frames, _, value in rows(tmp_path)] == expected
    assert [(e.step, pytest.approx(e.value)) for e in events(tmp_path).Scalars("train/success")] == expected
    assert not list(tmp_path.glob("*.tmp"))


def test_purging_hides_later_points_before_the_first_new_one(tmp_path: Path) -> None:
    interrupted_run(tmp_path)
    assert steps(tmp_path, "train/success")[-1] == 500  # what would overlap
    RunLogger(tmp_path, resume_from_frames=200).close()
    assert steps(tmp_path, "train/success") == [0, 100, 200]


def test_starting_over_forgets_everything(tmp_path: Path) -> None:
    interrupted_run(tmp_path)
    with RunLogger(tmp_path, resume_from_frames=-1) as logger:
        logger.log({"train/success": 0.5}, frames=0)
    assert rows(tmp_path) == [(0, "train/success", 0.5)]
    assert steps(tmp_path, "train/success") == [0]


def test_a_row_that_a_kill_cut_off_is_dropped(tmp_path: Path) -> None:
    interrupted_run(tmp_path)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("150,train/succ")
    with RunLogger(tmp_path, resume_from_frames=200) as logger:
        logger.log({"train/success": 0.9}, frames=300)
    assert [frames for frames, _, _ in rows(tmp_path)] == [0, 100, 200, 300]


DAMAGE = {
    "a short row": b"150,train/success\n",
    "a longer row": b"150,train/success,0.1,0.2\n",
    "no number": b"150,train/success,0.1x\n",
    "no frames": b"x150,train/success,0.1\n",
    "other digits": "\u00b2,train/success,0.1\n".encode(),
    "too many digits": b"9" * 5000 + b",train/success,0.1\n",
    "zeros of a power cut": bytes(40) + b"\n",
    "another encoding": b"150,train/succ\xe9s,0.1\n",
    "an open quote": b'150,"train/success,0.1\n',
    "an empty row": b"\n",
}


@pytest.mark.parametrize("row", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_row_is_left_out_and_the_file_kept(row: bytes, tmp_path: Path) -> None:
    interrupted_run(tmp_path)
    path = tmp_path / "metrics.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(found := b"".join([*lines[:3], row, *lines[3:]]))
    with RunLogger(tmp_path, resume_from_frames=200) as logger:
        logger.log({"train/success": 0.9}, frames=300)
    assert [frames for frames, _, _ in rows(tmp_path)] == [0, 100, 200, 300]
    assert logger.damaged == tmp_path / "damaged-metrics.csv" and logger.damaged.read_bytes() == found
    with RunLogger(tmp_path, resume_from_frames=200) as again:
        assert again.damaged is None


def test_an_empty_file_of_metrics_is_damaged_too(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").touch()
    with RunLogger(tmp_path, resume_from_frames=200) as logger:
        assert logger.damaged is not None
    assert rows(tmp_path) == []


@pytest.mark.parametrize("name", ["x", "\u00b2", "9" * 200, "", "1.2.3"])
def test_an_odd_name_among_the_event_files_harms_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / f"events.out.tfevents.{name}").touch()
    with RunLogger(tmp_path) as logger:
        logger.log({"train/success": 0.5}, frames=1)
    assert rows(tmp_path) == [(1, "train/success", 0.5)]
