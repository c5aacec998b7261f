"""Checkpoint files: how one is sealed, and the checks before anything in it is read.

A checkpoint is a `torchrl.checkpoint` archive (a zip file with a manifest). Its last 64 bytes, at the end of the zip
comment, are the SHA-256 of all bytes before them:

    manifest.json  components/0000-actor/tree.json  components/0000-actor/tensors.bin ...  directory  comment
    |<------------------------------------ hashed ------------------------------------------------->| digest |

The checksum detects damage but not forgery, hence the checks of the content.
"""

import hashlib
import json
import math
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torchrl.checkpoint import CheckpointAdapter

from htrmrl_torchrl.checkpoints.files import read_json

_LABEL, _DIGEST = b"sha256:", 64  # the label before the hexadecimal digits, and their number
_MANIFEST = "manifest.json"
# Allowed adapters and the files of each. The second is torchrl's own, for JSON.
_FILES = {"htrmrl_torchrl.tensors": ["tensors.bin", "tree.json"], "torchrl.json": ["value.json"]}
_FILE_NAMES = {name for files in _FILES.values() for name in files}
# Other dtypes of torch (quantised ones, for example) cannot be made from bytes alone.
_NUMBERS = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
        torch.float32, torch.float64,
    )
}  # fmt: skip
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
_END = struct.Struct("<4s4H2LH")  # of a zip file: signature, two disks, two counts, size, place, length of the comment
_HEADER, _LOCATOR = 30, 20  # bytes before an entry's name; bytes of the zip64 locator
_MOST_ENTRIES, _LARGEST_DIRECTORY = 256, 1 << 16  # a run writes 20 entries, and 2,000 bytes that list them
_LARGEST_JSON = 1 << 24  # per file; a run of 1,000 environments takes a thirtieth
_MOST_DIMENSIONS = 8
_CHUNK = 1 << 20
_SAID = 300  # characters of the reason; torch lists every tensor that does not fit


class NotACheckpoint(ValueError):
    """A file or folder that is not a checkpoint of this package, or is damaged; ``why`` gives the reason."""

    def __init__(self, path: str | Path, why: str) -> None:
        why = why if len(why) <= _SAID else f"{why[:_SAID]} ..."
        super().__init__(
            f"{path} is not a checkpoint of this package, or damaged ({why}); give one of a run's checkpoints/ folder, "
            "or a folder that save_pretrained wrote."
        )
        self.why = why


class TensorFiles(CheckpointAdapter):
    """Saves an object's ``state_dict`` as a JSON tree and the bytes of its tensors.

    TorchRL's own adapter maps a file per tensor, so a full disk kills the run with SIGBUS; its reader follows paths and
    unpickles objects. This one reads only tensors (to the CPU), numbers, strings, None, dictionaries, lists and tuples.
    """

    adapter_id = "htrmrl_torchrl.tensors"

    def save(self, component: Any, path: Path, *, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        path.mkdir(parents=True, exist_ok=True)
        with (path / "tensors.bin").open("wb") as file:
            tree = _encode(component.state_dict(), file)
        text = json.dumps(tree)
        if len(text) > _LARGEST_JSON:
            raise ValueError(
                f"A state without its tensors takes {len(text):,} bytes; {_LARGEST_JSON:,} are read again."
            )
        (path / "tree.json").write_text(text)

    def load(self, component: Any, path: Path, **_: Any) -> Any:
        component.load_state_dict(_decode((path / "tree.json").read_bytes(), (path / "tensors.bin").read_bytes()))


def _encode(value: Any, file: BinaryIO) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(value.dtype).removeprefix("torch.")
        if name not in _NUMBERS:
            raise TypeError(f"A state holds tensors of {', '.join(_NUMBERS)}, not {name}.")
        offset, flat = file.tell(), value.detach().cpu().contiguous().flatten()
        file.write(flat.view(torch.uint8).numpy().tobytes())
        return {"tensor": name, "shape": list(value.shape), "offset": offset}
    if isinstance(value, Mapping):  # as pairs: the optimizer's keys are numbers
        return {"dict": [[key, _encode(entry, file)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_encode(entry, file) for entry in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"A state holds tensors, numbers, strings, dictionaries, lists and tuples, not {type(value)}.")


def _decode(tree: bytes, numbers: bytes) -> Any:
    """Inverse of `_encode`; raises ValueError (or another error of `refused_by_name`) for anything else."""
    taken = 0

    def tensor(dtype: Any, shape: Any, offset: Any) -> torch.Tensor:
        nonlocal taken
        if dtype not in _NUMBERS:
            raise ValueError(f"{dtype!r} is not a supported dtype; these are {', '.join(_NUMBERS)}")
        if len(shape) > _MOST_DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"{shape!r} is not a valid shape")
        empty = torch.empty(0, dtype=_NUMBERS[dtype])
        begin, taken = taken, taken + empty.element_size() * math.prod(shape)
        if type(offset) is not int or offset != begin or taken > len(numbers):
            raise ValueError(
                f"a tensor of shape {shape} at byte {offset!r} is not in {len(numbers):,} bytes of numbers"
            )
        own = bytearray(numbers[begin:taken])  # writable, and the tensor's own
        if dtype == "bool" and own.translate(None, b"\0\1"):
            raise ValueError("a truth value is neither 0 nor 1")
        return (torch.frombuffer(own, dtype=empty.dtype) if own else empty).reshape(shape)

    def value(tree: Any) -> Any:
        if not isinstance(tree, dict):
            if isinstance(tree, list):
                raise ValueError("a list is given without its kind")
            return tree
        if "tensor" in tree:
            return tensor(**{"dtype" if name == "tensor" else name: entry for name, entry in tree.items()})
        ((kind, entries),) = tree.items()
        if kind != "dict":
            return {"list": list, "tuple": tuple}[kind](value(entry) for entry in entries)
        made = {key: value(entry) for key, entry in entries if type(key) in (int, str)}
        if len(made) != len(entries):
            raise ValueError("a key is repeated, or neither a string nor a whole number")
        return made

    state = value(read_json(tree, constants=True))
    if taken != len(numbers):
        raise ValueError(f"its tensors are {taken:,} of {len(numbers):,} bytes of numbers")
    return state


def seal(path: Path) -> None:
    """Write the checksum at the end of a zip file and flush the file to disk."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = _LABEL + bytes(_DIGEST)
    with path.open("r+b") as file:
        digest = _digest(file, path.stat().st_size - _DIGEST)
        file.seek(-_DIGEST, os.SEEK_END)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())


def check_archive(path: str | Path) -> list[str]:
    """The names of a checkpoint's components, after checking that it is undamaged and holds tensors and JSON only.

    Raises FileNotFoundError if there is nothing at `path`, ValueError if it is no valid checkpoint or cannot be read.
    """
    return list(_checked(path)["components"])


def read_states(
    path: str | Path, components: Collection[str] | None = None, *, optional: Collection[str] = ()
) -> dict[str, Any]:
    """States of some components (default: all), and of those ``optional`` ones that are there.

    Nothing is imported or executed. Raises as `check_archive` does.
    """
    records = _checked(path)["components"]
    names = list(records) if components is None else [*components, *(name for name in optional if name in records)]
    if missing := [name for name in names if name not in records]:
        raise NotACheckpoint(path, f"it has no {missing[0]}")
    with refused_by_name(path), zipfile.ZipFile(path) as archive:
        return {name: _read_component(archive, records[name]) for name in names}


def _read_component(archive: zipfile.ZipFile, record: dict[str, Any]) -> Any:
    files = [archive.read(f"{record['path']}/{name}") for name in _FILES[record["adapter"]]]
    if len(files) == 1:
        return read_json(files[0], constants=True)
    numbers, tree = files
    return _decode(tree, numbers)


def _checked(path: str | Path) -> dict[str, Any]:
    """The manifest of a file that passes all checks."""
    path = Path(path)
    try:
        found = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no checkpoint at {path}.") from None
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        raise NotACheckpoint(path, f"it cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(found.st_mode):  # a pipe would wait, and a device might never end
        raise NotACheckpoint(path, "not a file")
    with refused_by_name(path):
        _check_seal(path)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries, beyond=archive.start_dir)
            manifest = read_json(archive.read(_MANIFEST), constants=True)
        listed = _listed_files(manifest)
    if differing := sorted({entry.filename for entry in entries}.symmetric_difference({*listed, _MANIFEST})):
        raise NotACheckpoint(path, f"{differing[0]!r} is only in its manifest or only in the archive")
    return dict(manifest)


def _listed_files(manifest: Any) -> list[str]:
    if (manifest["format"], manifest["format_version"]) != ("torchrl.checkpoint", 1):
        raise ValueError("its manifest is not one of torchrl.checkpoint, version 1")
    listed = []
    for name, record in manifest["components"].items():
        files = _FILES.get(record["adapter"])
        if files is None or record["adapter_version"] != 1 or sorted(record["files"]) != files:
            raise ValueError(f"{name!r} is saved by {record['adapter']!r}, which is not one of {', '.join(_FILES)}")
        listed += [f"{record['path']}/{file}" for file in files]
    if len({*listed}) != len(listed):
        raise ValueError("two components have the same files")
    return listed


def _check_seal(path: Path) -> None:
    with path.open("rb") as file:
        size = path.stat().st_size
        comment = _DIGEST + len(_LABEL)
        file.seek(max(0, size - comment))
        label, digest = file.read(len(_LABEL)), file.read(_DIGEST)
        if label != _LABEL:
            raise NotACheckpoint(path, "no checksum at its end")
        if _digest(file, size - _DIGEST) != digest:
            raise NotACheckpoint(path, "its checksum is wrong")
        file.seek(max(0, size - comment - _END.size))
        signature, *_, entries, directory, _, said = _END.unpack(file.read(_END.size))
        if signature != b"PK\5\6" or said != comment:
            raise NotACheckpoint(path, "no list of entries before its checksum")
        if entries > _MOST_ENTRIES or directory > _LARGEST_DIRECTORY:
            raise NotACheckpoint(
                path,
                f"it lists {entries} entries in {directory:,} bytes, and no checkpoint has more than {_MOST_ENTRIES} "
                f"in {_LARGEST_DIRECTORY:,}",
            )
        file.seek(max(0, size - comment - _END.size - _LOCATOR))
        if file.read(4) == b"PK\6\7" and size <= zipfile.ZIP64_LIMIT:
            raise NotACheckpoint(path, "it has the second list of entries that only files of more than 2 GB have")


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], *, beyond: int) -> None:
    """Check names, kinds and places of all entries; they must end before ``beyond``, where the directory begins."""
    seen = set()
    for entry in entries:
        # The name as written: zipfile already cuts it at a zero byte.
        name = entry.orig_filename
        if not _PLAIN_NAME.fullmatch(name) or ".." in name.split("/"):
            raise NotACheckpoint(path, f"it holds {name!r}, which could lead out of the folder that it is read in")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise NotACheckpoint(path, f"it holds {name!r}, which is a link or not a regular file")
        if name in seen:
            raise NotACheckpoint(path, f"it holds {name!r} twice")
        seen.add(name)
        if name != _MANIFEST and name.rpartition("/")[2] not in _FILE_NAMES:
            raise NotACheckpoint(path, f"it holds {name!r}, but tensors and JSON are all that is read")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
            raise NotACheckpoint(
                path, f"it holds {name!r} compressed or encrypted, which checkpoints of this package never are"
            )
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise NotACheckpoint(path, "it declares more bytes inside than the file has")
    if (text := sum(entry.file_size for entry in entries if entry.filename.endswith(".json"))) > _LARGEST_JSON:
        raise NotACheckpoint(path, f"it holds {text:,} bytes of JSON, and at most {_LARGEST_JSON:,} are read")
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise NotACheckpoint(path, f"it holds {entry.filename!r} in the bytes of another entry")
        end = entry.header_offset + _HEADER + len(entry.orig_filename) + entry.file_size
    if end > beyond:
        raise NotACheckpoint(path, "an entry reaches into the list of entries")


def _digest(file: BinaryIO, size: int) -> bytes:
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0 and (chunk := file.read(min(size, _CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest().encode()


@contextmanager
def refused_by_name(path: str | Path, part: str = "content") -> Iterator[None]:
    """Turn errors of torch and zipfile about foreign or damaged files into a ValueError that names the file."""
    try:
        yield
    except NotACheckpoint:
        raise
    except (
        RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, MemoryError,
        OSError, struct.error, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        said = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError):
            raise NotACheckpoint(path, f"it cannot be read: {error.strerror or said}") from error
        raise NotACheckpoint(path, f"its {part} does not fit: {said}") from error
