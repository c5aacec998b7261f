"""One checkpoint file: how it is sealed, and what is checked before anything of it is read.

It is an archive of `torchrl.checkpoint` (a zip file with a manifest) whose last 64 bytes, at the end of the zip
comment, are the SHA-256 of all bytes before them:

    manifest.json  components/0000-actor/tree.json  components/0000-actor/tensors.bin ...  directory  comment
    |<------------------------------------ hashed ------------------------------------------------->| digest |

So every flipped bit and every missing byte shows, also in what zip's own checksums leave out. The checksum tells
damage, not origin: whoever forges a file seals it too, hence the checks on what is inside.
"""

import hashlib
import json
import logging
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torchrl import torchrl_logger
from torchrl.checkpoint import Checkpoint, CheckpointAdapter

_LABEL, _DIGEST = b"sha256:", 64  # the label before the hexadecimal digits, and their number
_FILES = ("tree.json", "tensors.bin", "value.json")  # all that a component may hold; the last is torchrl's JSON
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
_CHUNK = 1 << 20
_SAID = 300  # characters of what torch says; it lists every tensor that does not fit


class NotACheckpoint(ValueError):
    """A file that is no checkpoint of this package, or a damaged one; ``why`` says what is wrong with it."""

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__(
            f"{path} is not a checkpoint of this package, or damaged ({why}); give one of a run's checkpoints/ folder."
        )
        self.why = why


class TensorFiles(CheckpointAdapter):
    """Saves what has a ``state_dict`` as a tree in JSON and the bytes of its tensors.

    TorchRL's own adapter maps a file into memory for each tensor. On a full disk a write into such a map is no error
    but a SIGBUS, which kills the run; and when it reads, it follows paths and unpickles objects that the file names.
    Here writing is plain writing, and reading makes numbers only.

    A state may hold tensors, numbers, strings, None, and dictionaries, lists and tuples of these. Tensors come back on
    the CPU, whatever device they were on.
    """

    adapter_id = "htrmrl_torchrl.tensors"

    def save(self, component: Any, path: Path, *, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        path.mkdir(parents=True, exist_ok=True)
        with (path / "tensors.bin").open("wb") as file:
            tree = _encode(component.state_dict(), file)
        (path / "tree.json").write_text(json.dumps(tree))

    def load(self, component: Any, path: Path, **_: Any) -> Any:
        tree = json.loads((path / "tree.json").read_text())
        component.load_state_dict(_decode(tree, (path / "tensors.bin").read_bytes()))


def _encode(value: Any, file: BinaryIO) -> Any:
    if isinstance(value, torch.Tensor):
        offset, flat = file.tell(), value.detach().cpu().contiguous().flatten()
        file.write(flat.view(torch.uint8).numpy().tobytes())
        return {"tensor": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "offset": offset}
    if isinstance(value, Mapping):  # as pairs: the optimizer's keys are numbers
        return {"dict": [[key, _encode(entry, file)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_encode(entry, file) for entry in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"A state holds tensors, numbers, strings, dictionaries, lists and tuples, not {type(value)}.")


def _decode(tree: Any, data: bytes) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        dtype, shape = getattr(torch, tree["tensor"]), tree["shape"]
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{tree['tensor']!r} is no type of numbers")
        empty = torch.empty(0, dtype=dtype)
        size = empty.element_size() * torch.Size(shape).numel()
        own = bytearray(data[tree["offset"] : tree["offset"] + size])  # writable, and the tensor's own
        return (torch.frombuffer(own, dtype=dtype) if size else empty).reshape(shape)
    ((kind, entries),) = tree.items()
    if kind == "dict":
        return {key: _decode(entry, data) for key, entry in entries}
    return {"list": list, "tuple": tuple}[kind](_decode(entry, data) for entry in entries)


def seal(path: Path) -> None:
    """Put the checksum at the end of a zip file, and all of it on the disk."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = _LABEL + bytes(_DIGEST)
    with path.open("r+b") as file:
        digest = _digest(file, path.stat().st_size - _DIGEST)
        file.seek(-_DIGEST, os.SEEK_END)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())


def check_archive(path: str | Path) -> list[str]:
    """The names of a checkpoint's components, after refusing damage and whatever is not tensors and JSON.

    Nothing is extracted before all of it was checked: the checksum, every entry's name (no absolute or parent path, no
    link, no name twice) and size (nothing is compressed and nothing overlaps, so that a small file cannot grow).

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if it is not a checkpoint of a training run, damaged, or holds anything else.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    if not path.is_file():
        raise NotACheckpoint(path, "not a file")
    _check_seal(path)
    with refused_by_name(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        _check_entries(path, entries)
        components = Checkpoint.manifest(path)["components"]
        listed = {f"{record['path']}/{file}" for record in components.values() for file in record["files"]}
    found = {entry.filename for entry in entries}
    if differing := sorted(found.symmetric_difference({*listed, "manifest.json"})):
        raise NotACheckpoint(path, f"{differing[0]!r} is only in its manifest or only in the archive")
    return list(components)


def _check_seal(path: Path) -> None:
    with path.open("rb") as file:
        size = path.stat().st_size
        file.seek(max(0, size - _DIGEST - len(_LABEL)))
        label, digest = file.read(len(_LABEL)), file.read(_DIGEST)
        if label != _LABEL:
            raise NotACheckpoint(path, "no checksum at its end")
        if _digest(file, size - _DIGEST) != digest:
            raise NotACheckpoint(path, "its checksum is wrong")


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    seen = set()
    for entry in entries:
        # The name as written: zipfile already cuts it at a zero byte.
        name = entry.orig_filename
        if not _PLAIN_NAME.fullmatch(name) or ".." in name.split("/"):
            raise NotACheckpoint(path, f"it holds {name!r}, which could lead out of the folder that it is read in")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise NotACheckpoint(path, f"it holds {name!r}, a link to somewhere else")
        if name in seen:
            raise NotACheckpoint(path, f"it holds {name!r} twice")
        seen.add(name)
        if name != "manifest.json" and not name.endswith(_FILES):
            raise NotACheckpoint(path, f"it holds {name!r}, but tensors and JSON are all that is read")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise NotACheckpoint(
                path, f"it holds {name!r} compressed or encrypted, which checkpoints of this package never are"
            )
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise NotACheckpoint(path, "it declares more bytes inside than the file has")


def _digest(file: BinaryIO, size: int) -> bytes:
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0 and (chunk := file.read(min(size, _CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest().encode()


@contextmanager
def refused_by_name(path: str | Path) -> Iterator[None]:
    """Turns what torchrl and zipfile raise for foreign and damaged files into a ValueError that names the file."""
    try:
        yield
    except NotACheckpoint:
        raise
    except (
        RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, struct.error, zipfile.BadZipFile,
        zlib.error,
    ) as error:  # fmt: skip
        said = " ".join(str(error).split()) or type(error).__name__
        raise NotACheckpoint(path, f"its content does not fit: {said[:_SAID]}") from error


@contextmanager
def of_any_versions() -> Iterator[None]:
    """For reading numbers alone, which no package's version changes: TorchRL would warn of other ones at every read."""

    def is_of_something_else(record: logging.LogRecord) -> bool:
        return "version skew" not in record.getMessage()

    torchrl_logger.addFilter(is_of_something_else)
    try:
        yield
    finally:
        torchrl_logger.removeFilter(is_of_something_else)
