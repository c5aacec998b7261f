"""Files that a kill, a power cut or a full disk leaves either whole or as they were."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replace a file by ``text`` in one step: whoever reads it sees the old content or the new one.

    Raises:
        OSError: if it could not be written (a full disk, for example); the file is as it was.
    """
    stage = path.with_name(f".{path.name}.stage")
    try:
        with stage.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(stage, path)
    except OSError:
        stage.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def name_aside(path: Path) -> Path:
    """A name for a damaged file, ``damaged-*`` in the same folder, that nothing has yet."""
    names = (f"damaged-{number}{path.name}" for number in ("", *(f"{number}-" for number in range(2, 1000))))
    return next(aside for name in names if not os.path.lexists(aside := path.with_name(name)))


def set_aside(path: Path) -> Path:
    """Renames a damaged file so that nobody takes it for a whole one; returns its new path."""
    return path.rename(name_aside(path))


def sync_folder(folder: Path) -> None:
    """A rename has reached the disk when its folder has."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RecordFile:
    """A file that grows by whole records.

    Where the disk takes a record only in part, the part is taken back and the record waits in memory for the next call:
    the file is readable at any time, and complete as soon as there is room again.

    Args:
        path: the file, created where it is missing.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "records")
        >>> file = RecordFile(path)
        >>> file.write(b"one")
        >>> file.close()
        >>> path.read_text()
        'one'
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._waiting = b""
        self._closed = False

    def write(self, record: bytes) -> None:
        """Append a record, after those that still wait.

        Raises:
            OSError: if there was no room; what waits is then written with the next call.
        """
        self._waiting += record
        self.flush()

    def flush(self) -> None:
        """Write what waits. Raises OSError as `write` does."""
        size = os.fstat(self._descriptor).st_size
        rest = self._waiting
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise
        self._waiting = b""

    def close(self) -> None:
        """Write what waits and close; calling it twice is harmless. Raises OSError if something had to be left out."""
        if not self._closed:
            self._closed = True
            try:
                self.flush()
            finally:
                os.close(self._descriptor)
