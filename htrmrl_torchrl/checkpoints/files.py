"""Files that a kill, a power cut or a full disk leaves either whole or as they were, and JSON from anybody."""

import json
import os
import stat
from pathlib import Path
from typing import Any

_DEEPEST = 64  # lists and objects inside each other; an optimizer's state takes 12


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


def read_regular(path: str | Path, *, largest: int) -> bytes:
    """The bytes of a regular file of at most ``largest`` bytes; a pipe would wait and a device might never end.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: for anything else, or a larger file.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a file")
    if found.st_size > largest:
        raise ValueError(f"{found.st_size:,} bytes where at most {largest:,} are read")
    return Path(path).read_bytes()


def read_json(data: bytes, *, constants: bool = False) -> Any:
    """What a JSON file says that anybody may have written.

    Raises:
        ValueError: for text that is not UTF-8 or not JSON, NaN or Infinity (unless ``constants``), a key twice in one
            object, or more than 64 levels.

    Example:
        >>> read_json(b'{"frames": 1, "frames": 2}')
        Traceback (most recent call last):
        ...
        ValueError: the key 'frames' is there twice
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for key, value in pairs:
            if key in entries:
                raise ValueError(f"the key {key!r} is there twice")
            entries[key] = value
        return entries

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=float if constants else refuse)
    except RecursionError:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep") from None
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []  # the containers at one depth
    for _ in range(_DEEPEST):
        nodes = (node.values() if isinstance(node, dict) else node for node in level)
        level = [entry for node in nodes for entry in node if isinstance(entry, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def name_aside(path: Path) -> Path:
    """A name for a damaged file, ``damaged-*`` in the same folder, that nothing has yet."""
    names = (f"damaged-{number}{path.name}" for number in ("", *(f"{number}-" for number in range(2, 1000))))
    return next(aside for name in names if not os.path.lexists(aside := path.with_name(name)))


def set_aside(path: Path) -> Path:
    """Renames a damaged file so that nobody takes it for a whole one; returns its new path."""
    return path.rename(name_aside(path))


def sync_folder(folder: Path) -> None:
    """A rename has reached the disk when its folder has."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RecordFile:
    """A file that grows by whole records, created where it is missing.

    What the disk takes only in part is taken back and waits in memory for the next call: the file is readable at any
    time, and complete as soon as there is room again.
    """

    def __init__(self, path: Path) -> None:
        binary = getattr(os, "O_BINARY", 0)  # Windows would write other line ends
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | binary, 0o666)
        self._waiting = b""
        self._closed = False

    def write(self, record: bytes) -> None:
        """Append a record, after those that still wait. Raises OSError if there was no room; then it waits too."""
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
