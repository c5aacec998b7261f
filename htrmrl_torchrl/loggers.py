"""Scalars, text, figures and videos of one run: TensorBoard for the eye, ``metrics.csv`` for everything that computes.

TorchRL's ``TensorboardLogger`` opens its ``SummaryWriter`` without ``purge_step`` and has no argument for it, so a run
that continues from a checkpoint would show two overlapping curves. The same ``SummaryWriter`` is used here directly.
"""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from htrmrl_torchrl.media import Frames, encode_gif

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

HEADER = "frames,metric,value\n"


class RunLogger:
    """Writes the metrics of one run folder; the x axis of everything is environment frames.

    ``run_dir/metrics.csv`` is in long form (``frames,metric,value``, one row per number), so that metrics may come and
    go; ``run_dir/tensorboard`` holds the event files. Both are flushed by every call: what was logged survives a kill.

    Args:
        run_dir: folder of the run; created where it is missing.
        resume_from_frames: frames of the checkpoint that a continued run starts from. What was logged beyond it is
            dropped from ``metrics.csv`` and purged from TensorBoard, since these frames are played again; what was
            logged at or before it stays. ``None`` (default) starts a new run, ``-1`` starts one over.

    Raises:
        ValueError: if ``run_dir`` already holds metrics and ``resume_from_frames`` is ``None``: two runs in one folder
            could not be told apart.

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
        if resume_from_frames is None or not self.csv_path.exists():
            self.csv_path.write_text(HEADER)
        else:
            _drop_rows_after(self.csv_path, resume_from_frames)
        self._csv_file = self.csv_path.open("a", newline="")
        self._csv = csv.writer(self._csv_file, lineterminator="\n")
        # purge_step hides events whose step is greater than or equal to it
        purge_step = None if resume_from_frames is None else resume_from_frames + 1
        self._writer = SummaryWriter(log_dir=str(self.run_dir / "tensorboard"), purge_step=purge_step)

    def log(self, metrics: Mapping[str, float], *, frames: int) -> None:
        """Write scalars at ``frames``. Non-finite values are written as they are (``nan``, ``inf``)."""
        values = {name: float(value) for name, value in metrics.items()}  # all or nothing: a bad value writes no row
        self._csv.writerows((frames, name, value) for name, value in values.items())
        self._csv_file.flush()
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=frames)
        self._writer.flush()

    def log_text(self, name: str, text: str) -> None:
        """Show ``text`` (Markdown) in TensorBoard, e.g. the resolved configuration."""
        self._writer.add_text(name, text, global_step=0)
        self._writer.flush()

    def log_figure(self, name: str, figure: "Figure", frames: int) -> None:
        """Show a Matplotlib figure in TensorBoard at ``frames``; the figure is closed."""
        self._writer.add_figure(name, figure, global_step=frames)
        self._writer.flush()

    def log_histogram(self, name: str, values: "Tensor", frames: int) -> None:
        """Show how ``values``, of any shape, are distributed at ``frames``."""
        self._writer.add_histogram(name, values.detach().flatten().cpu(), global_step=frames)
        self._writer.flush()

    def log_video(self, name: str, pictures: Frames, *, frames: int, fps: float) -> None:
        """Show a moving picture in TensorBoard, see `add_video`."""
        add_video(self._writer, name, pictures, frames=frames, fps=fps)
        self._writer.flush()

    def close(self) -> None:
        """Close both files; calling it twice is harmless."""
        self._csv_file.close()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def add_video(writer: SummaryWriter, name: str, pictures: Frames, *, frames: int, fps: float) -> None:
    """Show a moving picture in TensorBoard's images, as a GIF.

    ``SummaryWriter.add_video`` writes the same event, but wants moviepy to make the GIF.

    Args:
        writer: of the event file.
        name: the tag.
        pictures: uint8 ``[n, H, W, 3]``, RGB.
        frames: environment frames at which it is shown.
        fps: pictures a second.

    Raises:
        ValueError: for pictures of another shape or type.
    """
    gif = encode_gif(pictures, fps=fps)
    height, width, channels = pictures.shape[1:]
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=gif)
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), global_step=frames)


def _drop_rows_after(path: Path, frames: int) -> None:
    """Rewrite ``metrics.csv`` without rows beyond ``frames`` and without a last row that a kill cut off."""
    rows = path.read_text().splitlines(keepends=True)[1:]
    kept = [row for row in rows if row.endswith("\n") and int(row.split(",", 1)[0]) <= frames]
    temporary = path.with_suffix(".csv.tmp")
    temporary.write_text(HEADER + "".join(kept))
    os.replace(temporary, path)
