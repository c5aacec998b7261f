"""Scalars, text, figures and videos of one run, in ``metrics.csv``, TensorBoard and experiment trackers (`trackers`).
Events are written here directly, each whole or not at all. TorchRL's ``TensorboardLogger`` has no ``purge_step``, so a
continued run would show two curves; ``SummaryWriter`` writes in a thread, which leaves half a record on a full disk.
"""

import csv
import io
import os
import re
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import histogram, image, text

from htrmrl_torchrl.checkpoints.files import RecordFile, name_aside, write_whole
from htrmrl_torchrl.extras import require
from htrmrl_torchrl.media import Frames, encode_gif
from htrmrl_torchrl.runs.trackers import TRACKERS, Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

HEADER = "frames,metric,value\n"
LOGGERS = ("csv", "tensorboard", *TRACKERS)


def check_loggers(names: Sequence[str]) -> None:
    """Raise ValueError for an unknown logger or a list without ``csv``, and `MissingExtraError` for a missing package.

    Example:
        >>> check_loggers(["csv", "tensorbord"])
        Traceback (most recent call last):
        ValueError: logger 'tensorbord' is unknown; choose from csv, tensorboard, wandb, mlflow, trackio.
    """
    if unknown := [name for name in names if name not in LOGGERS]:
        raise ValueError(f"logger {unknown[0]!r} is unknown; choose from {', '.join(LOGGERS)}.")
    if "csv" not in names:
        raise ValueError("the loggers lack csv: metrics.csv is what a run's summary and its plots are made from.")
    for name in names:
        if name in TRACKERS:
            require(name, name)


class RunLogger:
    """Writes the metrics of one run folder: ``metrics.csv`` with one row per number (``frames,metric,value``), the
    event files in ``tensorboard`` and, if asked for, trackers. The x axis is environment frames. Every call writes to
    the files before it returns; data that the disk refuses is kept for the next call. A tracker that fails is named
    once and then off.

    Args:
        run_dir: folder of the run; created if missing.
        resume_from_frames: frames of the checkpoint that a run continues from; later rows are dropped. ``None``
            (default) starts a new run, ``-1`` starts one over.
        loggers: names out of `LOGGERS`. ``csv`` is always written. Text, figures and histograms go to ``tensorboard``
            only. ``wandb``, ``mlflow`` and ``trackio`` need ``pip install 'htrmrl_torchrl[<name>]'``.
        config: the run's settings, flat, for the trackers to show.

    Attributes:
        damaged: a copy of ``metrics.csv`` as found, if rows were unreadable; they are left out. An incomplete last row
            is not damage.

    Raises ValueError if ``run_dir`` has metrics and ``resume_from_frames`` is ``None``, and OSError from any call if
    the disk is full; the run may continue.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with RunLogger(folder) as logger:
        ...     logger.log({"train/success": 0.25}, frames=1000)
        >>> print(Path(folder, "metrics.csv").read_text(), end="")
        frames,metric,value
        1000,train/success,0.25
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        resume_from_frames: int | None = None,
        loggers: Sequence[str] = ("csv", "tensorboard"),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        check_loggers(loggers)
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
        self._events = EventFile(self.run_dir / "tensorboard") if "tensorboard" in loggers else None
        if resume_from_frames is not None:  # hides events whose step is this one or a later one
            self._add(session_log=SessionLog(status=SessionLog.START), step=resume_from_frames + 1)
        continued = None if resume_from_frames == -1 else resume_from_frames
        self._trackers = [
            Tracker(name, self.run_dir, resume_from_frames=continued, config=config or {})
            for name in loggers
            if name in TRACKERS
        ]

    def log(self, metrics: Mapping[str, float], *, frames: int) -> None:
        """Write scalars at ``frames``, non-finite values as ``nan`` and ``inf``."""
        values = {name: float(value) for name, value in metrics.items()}  # all or nothing: a bad value writes no row
        rows = io.StringIO()
        csv.writer(rows, lineterminator="\n").writerows((frames, name, value) for name, value in values.items())
        scalars = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        try:
            self._csv.write(rows.getvalue().encode())
        finally:
            try:
                self._add(summary=scalars, step=frames)
            finally:
                for tracker in self._trackers:
                    tracker.log(values, frames=frames)

    def log_text(self, name: str, content: str) -> None:
        """Show ``content`` (Markdown) in TensorBoard."""
        self._add(summary=text(name, content), step=0)

    def log_figure(self, name: str, figure: "Figure", frames: int) -> None:
        """Show a Matplotlib figure in TensorBoard at ``frames`` and close it."""
        from torch.utils.tensorboard._utils import figure_to_image

        self._add(summary=image(name, figure_to_image(figure), dataformats="CHW"), step=frames)

    def log_histogram(self, name: str, values: "Tensor", frames: int) -> None:
        """Show the distribution of ``values``, of any shape, at ``frames``."""
        numbers = values.detach().flatten().cpu().numpy()
        self._add(summary=histogram(name, numbers, bins=30), step=frames)

    def close(self) -> None:
        try:
            self._csv.close()
        finally:
            for tracker in self._trackers:
                tracker.close()
            if self._events is not None:
                self._events.close()

    def _add(self, **event: object) -> None:
        if self._events is not None:
            self._events.add(**event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_EVENT_FILE = re.compile(r"events\.out\.tfevents\.([0-9]{10})\.")  # the second in which it was begun


class EventFile:
    """A new TensorBoard event file in ``folder``, read after the existing ones."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in order of their names. A restart within the same second, or after the clock was set
        # back, must still come after the events that it purges.
        begun = [_EVENT_FILE.match(name) for name in os.listdir(folder)]
        second = max([int(time.time()), *(int(match[1]) + 1 for match in begun if match)])
        self._file = RecordFile(folder / f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}")
        self._writer = RecordWriter(self._file)  # one write a record
        self.add(file_version="brain.Event:2")

    def add(self, **event: object) -> None:
        self._writer.write(Event(wall_time=time.time(), **event).SerializeToString())

    def add_video(self, name: str, pictures: Frames, *, frames: int, fps: float) -> None:
        """Show ``pictures``, uint8 ``[n, H, W, 3]``, as a GIF; ``SummaryWriter.add_video`` would need moviepy."""
        gif = encode_gif(pictures, fps=fps)
        height, width, channels = pictures.shape[1:]
        picture = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=gif)
        self.add(summary=Summary(value=[Summary.Value(tag=name, image=picture)]), step=frames)

    def close(self) -> None:
        self._file.close()


Row = tuple[int, str, float]


def read_rows(path: Path) -> tuple[list[tuple[Row, str]], int]:
    """The rows of a ``metrics.csv`` with their text, and the number of damaged ones; OSError if it cannot be read. An
    incomplete last row, which a killed process leaves, counts as neither.
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
    """Rewrites ``metrics.csv`` without damaged rows and rows beyond ``frames``; returns a copy if any were damaged."""
    rows, damaged = read_rows(path)
    kept = "".join(text for (at, _, _), text in rows if at <= frames)
    aside = None
    if damaged:
        aside = name_aside(path)
        shutil.copyfile(path, aside)
    write_whole(path, HEADER + kept)
    return aside
