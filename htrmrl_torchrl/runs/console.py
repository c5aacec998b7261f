"""Terminal output that never fails: a full disk, a pipe without reader or a closed terminal ends no run."""

import io
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class _Unfailing:
    """A text stream that ignores errors; ``stream`` returns the stream to write to, or None if closed (``>&-``)."""

    def __init__(self, stream: Callable[[], TextIO | None]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, AttributeError):
            self._stream().write(text)  # type: ignore[union-attr]
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, AttributeError):
            self._stream().flush()  # type: ignore[union-attr]

    def __getattr__(self, name: str) -> Any:  # encoding, isatty, fileno, ...
        return getattr(self._stream(), name)


_NOBODY: Any = io.TextIOBase()


def _listener() -> TextIO | None:
    """Of several processes of a run (`htrmrl_torchrl.parallel`) the first one speaks."""
    return sys.stderr if os.environ.get("RANK", "0") == "0" else _NOBODY


STDERR: Any = _Unfailing(_listener)  # one object: tqdm only writes around bars of the same file
# The words of the command ``htrmrl`` that started a recipe; empty if Python ran its file.
program: list[str] = []


def command_line(arguments: Sequence[str] | None = None, *, python: str = "python") -> str:
    """The command that started this process, quoted for a shell; with other `arguments` if given."""
    words = program or [python, sys.argv[0]]
    return shlex.join([*words, *(sys.argv[1:] if arguments is None else arguments)])


def say(sentence: str) -> None:
    """A line on stderr."""
    print(sentence, file=STDERR, flush=True)


def note(sentence: str) -> None:
    """A line on stderr while work goes on: above a progress bar, if there is one."""
    if "tqdm" in sys.modules:  # else there is none, and perhaps no such package
        from tqdm import tqdm

        tqdm.write(sentence, file=STDERR)
    else:
        say(sentence)


@contextmanager
def unfailing_output() -> Iterator[None]:
    """Within the block, output to stdout and stderr never fails, nor does Python's own flush at exit."""
    occupy_standard_descriptors()
    before = sys.stdout, sys.stderr
    for name, stream in zip(("stdout", "stderr"), before, strict=True):
        setattr(sys, name, _unfailing(stream))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            _let_go(stream)


def _unfailing(stream: TextIO | None) -> _Unfailing:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # a path may hold bytes that are not UTF-8
    own = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
    return _Unfailing(lambda: own)


def occupy_standard_descriptors() -> None:
    """Open closed standard descriptors, so that no file gets their number and receives low-level output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _let_go(stream: TextIO | None) -> None:
    """Flushes the buffer, or drops it: a failing flush at exit would give exit code 120."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def best_effort(what: str) -> Iterator[None]:
    """Turns an OSError while writing `what` into a warning, so that the run continues."""
    try:
        yield
    except OSError as error:
        note(f"warning: {what} could not be written ({reason(error)}); the run continues")


def reason(error: OSError) -> str:
    """The message, without number and path."""
    return error.strerror or str(error)
