"""Figures, GIFs (Pillow) and MP4s (H.264, by imageio-ffmpeg), each written whole or not at all."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from htrmrl_torchrl.checkpoints.files import write_whole
from htrmrl_torchrl.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Frames = npt.NDArray[np.uint8]  # [n, H, W, 3], RGB
_PALETTE_SAMPLE = 16  # pictures


def write_figure(figure: "Figure", path: Path) -> None:
    """Write a figure in the format of the file's suffix, creating folders; after an OSError the file is unchanged."""
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.removeprefix(".").lower(), dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, picture.getvalue())


def drawable(text: str) -> str:
    """Text that Matplotlib can draw: undecodable bytes of a path are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def as_written(text: str) -> str:
    """Text that Matplotlib draws literally: dollar signs start no formula, a leading underscore hides no line.

    Example:
        >>> as_written("$x"), as_written("_y")
        ('\\\\$x', ' _y')
    """
    text = drawable(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def check_frames(frames: Frames) -> None:
    """Raise ValueError unless ``frames`` is uint8 ``[n, H, W, 3]`` with at least one picture."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(
            f"A video is uint8 [n, H, W, 3] with n, H and W of at least 1, received {frames.dtype} "
            f"{list(frames.shape)}; convert it before."
        )


def encode_gif(frames: Frames, *, fps: float) -> bytes:
    """An endlessly repeated GIF of ``frames`` [n, H, W, 3], with at most 50 pictures a second and 256 colours.

    Example:
        >>> encode_gif(np.zeros((2, 8, 8, 3), np.uint8), fps=10)[:6]
        b'GIF89a'
    """
    check_frames(frames)
    require("video", "PIL")
    from PIL import Image

    # One palette for all and no dithering: still regions do not flicker, and the file is small.
    # An octree keeps the colours of small objects (a target of 50 pixels), which a median cut loses.
    sample = frames[np.unique(np.linspace(0, len(frames) - 1, _PALETTE_SAMPLE).round().astype(int))]
    palette = Image.fromarray(sample.reshape(-1, *frames.shape[2:])).quantize(method=Image.Quantize.FASTOCTREE)
    none = Image.Dither.NONE
    first, *others = (Image.fromarray(frame).quantize(palette=palette, dither=none) for frame in frames)
    buffer = io.BytesIO()
    duration = max(20, 10 * round(100 / fps))  # milliseconds
    first.save(buffer, format="GIF", save_all=True, append_images=others, duration=duration, loop=0)
    return buffer.getvalue()


def write_frames(frames: Frames, path: str | os.PathLike[str], *, fps: float) -> Path:
    """Write ``frames`` [n, H, W, 3] as ``.mp4`` or ``.gif``, creating folders; ValueError for other suffixes or types.

    Example:
        >>> import tempfile
        >>> write_frames(np.zeros((2, 32, 32, 3), np.uint8), tempfile.mkdtemp() + "/trial.gif", fps=10).name
        'trial.gif'
    """
    target = Path(path)
    write = _WRITERS.get(target.suffix.lower())
    if write is None:
        raise ValueError(f"A video's name ends in {' or '.join(_WRITERS)}, received {target.name!r}; rename it.")
    check_frames(frames)
    target.parent.mkdir(parents=True, exist_ok=True)
    write(frames, target, fps)
    return target


def _write_mp4(frames: Frames, path: Path, fps: float) -> None:
    require("video", "imageio", "imageio_ffmpeg")
    import imageio.v2 as imageio

    odd = [(0, side % 2) for side in frames.shape[1:3]]
    if any(missing for _, missing in odd):
        frames = np.pad(frames, [(0, 0), *odd, (0, 0)], mode="edge")  # yuv420p halves both sides
    # macro_block_size: imageio would otherwise stretch pictures to multiples of 16
    stage = path.with_name(f".{path.stem}.stage.mp4")
    try:
        imageio.mimwrite(
            stage, list(frames), format="FFMPEG", fps=fps, codec="libx264", pixelformat="yuv420p", macro_block_size=2
        )
        os.replace(stage, path)
    finally:
        stage.unlink(missing_ok=True)


def _write_gif(frames: Frames, path: Path, fps: float) -> None:
    write_whole(path, encode_gif(frames, fps=fps))


_WRITERS: dict[str, Callable[[Frames, Path, float], None]] = {".mp4": _write_mp4, ".gif": _write_gif}
