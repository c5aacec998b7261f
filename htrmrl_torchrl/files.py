"""Files that a kill, a power cut or a full disk leaves either whole or as they were."""

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file by ``content`` (text as UTF-8) in one step: whoever reads it sees the old or the new one.

    Raises:
        OSError: if it could not be written (a full disk, for example); the file is as it was.
    """
    stage = path.with_name(f".{path.name}.stage")
    try:
        with stage.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(stage, path)
    except OSError:
        stage.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


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
