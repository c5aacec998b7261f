"""What recipes say on stderr, which may be a file on the same full disk, or a terminal that is gone."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class _Stderr:
    """The process's stderr, which never fails: a line that cannot be shown ends no run."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    @property
    def encoding(self) -> str:
        return sys.stderr.encoding

    def isatty(self) -> bool:
        return sys.stderr.isatty()

    def fileno(self) -> int:  # asked for the width of the terminal
        return sys.stderr.fileno()


STDERR = _Stderr()  # one for all: tqdm writes around bars of the same file only


def say(sentence: str) -> None:
    """A line on stderr."""
    print(sentence, file=STDERR, flush=True)


@contextmanager
def spared(what: str) -> Iterator[None]:
    """A disk that is full, or otherwise unwilling, costs what was to be written to it, not the run."""
    try:
        yield
    except OSError as error:
        from tqdm import tqdm

        tqdm.write(f"warning: {what} could not be written ({_reason(error)}); the run goes on", file=STDERR)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
