"""Scalars, text, figures and videos of one run, in TensorBoard and in ``metrics.csv``.

Runs stop and continue, and a disk may be full. TorchRL's ``TensorboardLogger`` has no ``purge_step``, so a continued
run would show two overlapping curves. torch's ``SummaryWriter`` writes in a thread, where a full disk leaves half a
record. The same events are written here directly, each whole or not at all.
"""

import csv
import io
import os
import re
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import histogram, image, text

from htrmrl_torchrl.checkpoints.files import RecordFile, name_aside, write_whole
from htrmrl_torchrl.media import Frames, encode_gif

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

HEADER = "frames,metric,value\n"


class RunLogger:
    """Writes the metrics of one run folder; the x axis of everything is environment frames.

    ``run_dir/metrics.csv`` has one row per number (``frames,metric,value``); ``run_dir/tensorboard`` holds the event
    files. Every call reaches the files before it returns. What the disk does not take waits in memory for the next
    call, and both files stay readable.

    Args:
        run_dir: folder of the run; created where it is missing.
        resume_from_frames: frames of the checkpoint that a continued run starts from; what was logged beyond it is
            dropped. ``None`` (default) starts a new run, ``-1`` starts one over.

    Attributes:
        damaged: a copy of ``metrics.csv`` as it was found, if it had rows that cannot be read; they are left out. What
            a kill leaves of the last row is no damage.

    Raises:
        ValueError: if ``run_dir`` already holds metrics and ``resume_from_frames`` is ``None``.
        OSError: from any call for which the disk had no room; the run may go on.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with RunLogger(folder) as logger:
        ...     logger.log({"train/success": 0.25}, frames=1000)
        >>> print(Path(folder, "metrics.csv").read_text(), end="")
        frames,metric,value
        1000,train/success,0.25
    """

    def __init__(self, run_dir: str | os.PathLike[str], *, resume_from_frames: int | None = None) -> None:
        self.run_dir = Path(run_dir)
        self.csv_path = self.run_dir / "metrics.csv"
        if resume_from_frames is None and self.csv_path.exists():
            raise ValueError(
                f"{self.csv_path} already holds the metrics of a run; choose an empty folder, or continue the run with "
                "resume_from_frames=<frames of its checkpoint> (-1 starts it over)"
            )
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.damaged: Path | None = None
        if resume_from_frames is None or not self.csv_path.exists():
            write_whole(self.csv_path, HEADER)
        else:
            self.damaged = _drop_rows_after(self.csv_path, resume_from_frames)
        self._csv = RecordFile(self.csv_path)
        self._events = EventFile(self.run_dir / "tensorboard")
        if resume_from_frames is not None:  # hides events whose step is this one or a later one
            self._events.add(session_log=SessionLog(status=SessionLog.START), step=resume_from_frames + 1)

    def log(self, metrics: Mapping[str, float], *, frames: int) -> None:
        """Write scalars at ``frames``. Non-finite values are written as they are (``nan``, ``inf``)."""
        values = {name: float(value) for name, value in metrics.items()}  # all or nothing: a bad value writes no row
        rows = io.StringIO()
        csv.writer(rows, lineterminator="\n").writerows((frames, name, value) for name, value in values.items())
        scalars = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        try:
            self._csv.write(rows.getvalue().encode())
        finally:
            self._events.add(summary=scalars, step=frames)

    def log_text(self, name: str, content: str) -> None:
        """Show ``content`` (Markdown) in TensorBoard, e.g. the resolved configuration."""
        self._events.add(summary=text(name, content), step=0)

    def log_figure(self, name: str, figure: "Figure", frames: int) -> None:
        """Show a Matplotlib figure in TensorBoard at ``frames``; the figure is closed."""
        from torch.utils.tensorboard._utils import figure_to_image

        self._events.add(summary=image(name, figure_to_image(figure), dataformats="CHW"), step=frames)

    def log_histogram(self, name: str, values: "Tensor", frames: int) -> None:
        """Show how ``values``, of any shape, are distributed at ``frames``."""
        numbers = values.detach().flatten().cpu().numpy()
        self._events.add(summary=histogram(name, numbers, bins=30), step=frames)

    def close(self) -> None:
        """Close both files; calling it twice is harmless."""
        try:
            self._csv.close()
        finally:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_EVENT_FILE = re.compile(r"events\.out\.tfevents\.([0-9]{10})\.")  # the second in which it was begun


class EventFile:
    """A new TensorBoard event file in ``folder``, read after those that are there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads them in the order of their names. A restart within the second, or a clock that was set
        # back, must not come before the events that it continues and purges.
        begun = [_EVENT_FILE.match(name) for name in os.listdir(folder)]
        second = max([int(time.time()), *(int(match[1]) + 1 for match in begun if match)])
        self._file = RecordFile(folder / f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}")
        self._writer = RecordWriter(self._file)  # one write a record
        self.add(file_version="brain.Event:2")

    def add(self, **event: object) -> None:
        """Write an event. Raises OSError as `RecordFile.write` does."""
        self._writer.write(Event(wall_time=time.time(), **event).SerializeToString())

    def add_video(self, name: str, pictures: Frames, *, frames: int, fps: float) -> None:
        """Show ``pictures``, uint8 ``[n, H, W, 3]``, as a GIF in TensorBoard at ``frames``; ``fps`` pictures a second.

        ``SummaryWriter.add_video`` writes the same event, but needs moviepy to make the GIF.
        """
        gif = encode_gif(pictures, fps=fps)
        height, width, channels = pictures.shape[1:]
        picture = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=gif)
        self.add(summary=Summary(value=[Summary.Value(tag=name, image=picture)]), step=frames)

    def close(self) -> None:
        """Close it; calling it twice is harmless."""
        self._file.close()


Row = tuple[int, str, float]


def read_rows(path: Path) -> tuple[list[tuple[Row, str]], int]:
    """The rows of a ``metrics.csv`` with the text of each, and how many are damaged; OSError if it cannot be read.

    A last row without an end is neither: it is what a kill or a power cut leaves.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    header, *lines = lines or [""]
    read = [(_row(line), f"{line}\n") for line in lines]
    whole = [(row, text) for row, text in read if row is not None]
    return whole, len(read) - len(whole) + (f"{header}\n" != HEADER)


def _row(line: str) -> Row | None:
    try:
        frames, name, value = line.split(",") if '"' not in line else next(csv.reader([line]))
        if re.fullmatch(r"[0-9]{1,18}", frames) and name.isprintable() and "\ufffd" not in line:
            return int(frames), name, float(value)
    except (ValueError, csv.Error):
        pass
    return None


def _drop_rows_after(path: Path, frames: int) -> Path | None:
    """Rewrites ``metrics.csv`` without rows beyond ``frames`` and damaged ones; if there are any, a copy is kept."""
    rows, damaged = read_rows(path)
    kept = "".join(text for (at, _, _), text in rows if at <= frames)
    aside = None
    if damaged:
        aside = name_aside(path)
        shutil.copyfile(path, aside)
    write_whole(path, HEADER + kept)
    return aside
