"""Progress bars on a terminal, and progress lines elsewhere."""

import sys
from typing import TYPE_CHECKING, Any, Self, TextIO

from htrmrl_torchrl.extras import require

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS = 30.0
_LINE = "{desc}{percentage:.0f}%, {n_fmt} of {total_fmt}{unit}, {rate_fmt}{postfix}, {remaining} left"


class _Lines:
    """A stream for tqdm that writes each drawing of the bar as a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", "utf-8")

    def write(self, text: str) -> None:
        if line := text.strip():  # without what moves the cursor
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()


class NoBar:
    """Takes the place of a bar that is not shown, and needs no tqdm."""

    def update(self, count: int) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def progress_bar(*, file: Any = None, bar_format: str | None = None, **options: Any) -> "tqdm":
    """A tqdm bar; if its stream is no terminal (a batch job's log), one line every half minute and at the end.

    Args:
        file: the stream; default: the process's stderr.
        bar_format: default: tqdm's own on a terminal; elsewhere percentage, count, rate, postfix and time left.
        **options: passed to tqdm.

    Raises `MissingExtraError` without tqdm, which comes with ``pip install 'htrmrl_torchrl[cli]'``.

    Example:
        >>> import io
        >>> log = io.StringIO()
        >>> with progress_bar(total=500, unit=" frames", file=log) as bar:
        ...     for _ in range(500):
        ...         bar.update()
        >>> [line.split(",")[:2] for line in log.getvalue().splitlines()]
        [['0%', ' 0 of 500 frames'], ['100%', ' 500 of 500 frames']]
    """
    require("cli", "tqdm")
    from tqdm import tqdm

    stream = sys.stderr if file is None else file
    if stream.isatty():
        return tqdm(file=stream, bar_format=bar_format, **options)
    return tqdm(file=_Lines(stream), bar_format=bar_format or _LINE, mininterval=SECONDS, miniters=0, **options)
