"""What recipes say, on streams that may be closed: a file on a full disk, a pipe without a reader, a gone terminal."""

import io
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class _Unfailing:
    """A text stream that never fails: what cannot be shown ends no run.

    Args:
        stream: gives the stream to write to; none for one that was closed before Python started (``>&-``).
    """

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


STDERR: Any = _Unfailing(lambda: sys.stderr)  # one for all: tqdm writes around bars of the same file only


program: list[
    str
] = []  # the words of the command ``htrmrl`` that started a recipe; none where Python was given its file


def command_line(arguments: Sequence[str] | None = None, *, python: str = "python") -> str:
    """How this process was started, ready for a shell; with other `arguments` where they are given."""
    words = program or [python, sys.argv[0]]
    return shlex.join([*words, *(sys.argv[1:] if arguments is None else arguments)])


def say(sentence: str) -> None:
    """A line on stderr."""
    print(sentence, file=STDERR, flush=True)


@contextmanager
def unfailing_output() -> Iterator[None]:
    """Meanwhile nothing that is printed on stdout or stderr can fail, nor can Python's own flush at exit."""
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
        stream.reconfigure(errors="backslashreplace")  # a path may hold bytes that are no characters
    own = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
    return _Unfailing(lambda: own)


def occupy_standard_descriptors() -> None:
    """A file that got the number of a closed stdout would be written to by whatever prints below Python."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _let_go(stream: TextIO | None) -> None:
    """Writes what is buffered; where that fails, drops it, or the flush at exit would end with exit code 120."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def spared(what: str) -> Iterator[None]:
    """A disk that is full, or otherwise unwilling, costs what was to be written to it, not the run."""
    try:
        yield
    except OSError as error:
        from tqdm import tqdm

        tqdm.write(f"warning: {what} could not be written ({reason(error)}); the run goes on", file=STDERR)


def reason(error: OSError) -> str:
    """Why it failed, without number and path."""
    return error.strerror or str(error)
