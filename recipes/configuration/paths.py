"""Paths on the command line: read literally, and checked to be writable before any work starts.

Paths are not read in Hydra's grammar, where ``=``, commas, brackets and quotes have a meaning:

    out=runs/encoder.window=1/seed=1    is that folder
    out=~/results                       is in the home folder; ./~ is a folder of that name
    run_dir=runs/x_${seed}              uses another key, unless a file of that very name exists
    out='"my results"'                  quotes for Hydra are allowed
    out=null                            is no path, where the shipped default is none

Nor are folds of a benchmark (``env.name=ML10:fold=1,ML10:fold=2``), for the sake of their ``=``.
"""

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.runs.lock import LOCK

PATHS = ("checkpoint", "out", "report", "resume", "run_dir")  # the keys, of all recipes, that are paths
_BENCHMARKS = ("env.name", "benchmark")  # the keys that may name a fold
_TRIED = bytes(4096)  # a full disk shows only when something is written


def in_hydras_words(override: str) -> str:
    """An override of a path or a fold quoted for Hydra's grammar; every other override as it is.

    Example:
        >>> in_hydras_words("out=a=b,c")
        "out='a=b,c'"
        >>> in_hydras_words("env.name=ML10:fold=1,ML10")
        "env.name='ML10:fold=1',ML10"
        >>> in_hydras_words("seed=1,2")
        'seed=1,2'
    """
    key, equals, text = override.partition("=")
    if key in _BENCHMARKS and re.fullmatch(r"[\w:=,-]*", text):
        return f"{key}={','.join(quoted(name) if '=' in name else name for name in text.split(','))}"
    if key not in PATHS or not equals or text == "null":
        return override
    if _is_there(text) and os.path.expanduser(text) == text:
        return path_override(key, text)
    return f"{key}={quoted(_unquoted(text))}"


def path_override(key: str, path: str | Path) -> str:
    """The override that sets ``key`` to exactly this path, whatever its characters."""
    text = f"./{path}" if str(path).startswith(("~", "???")) else str(path)
    return f"{key}={quoted(literally(text))}"


def literally(text: str) -> str:
    """Text escaped for OmegaConf, where an unescaped ``${`` begins an interpolation."""
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", text)


def expanded(key: str, text: str) -> str:
    """The path with ``~`` or ``~user`` expanded. Raises UserError for an unknown home folder or an invalid path."""
    if "\0" in text:
        raise UserError(f"{key} is {text!r} but a path has no zero byte")
    try:
        folder = "/" if text.endswith("/") else ""
        return f"{Path(text).expanduser()}{folder}" if text.startswith("~") else text
    except RuntimeError as error:  # pathlib's for an unknown user
        raise UserError(
            f"{key} is '{text}' but there is no such home folder; ./{text} is a path of that name"
        ) from error


def _is_there(text: str) -> bool:
    """Whether a file of this very name exists; the part after the last ``${...}/`` may be new."""
    end = text.find("/", text.rfind("${")) if "${" in text else -1
    try:
        return os.path.lexists(text if end < 0 else text[:end])
    except ValueError:  # a zero byte
        return False


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        try:
            return str(OverridesParser.create().parse_override(f"x={text}").value())
        except HydraException:  # quotes within, as in 'a' and 'b'
            return text
    return text


def quoted(text: str) -> str:
    """Text as a value in Hydra's grammar."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def safe_name(text: str, *, longest: int = 80) -> str:
    """A readable file name without special characters; different texts get different names.

    Example:
        >>> safe_name("ML10"), safe_name("a b")
        ('ML10', 'a_b-c8687a08')
    """
    safe = re.sub(r"[^A-Za-z0-9_.,=-]+", "_", text)[:longest]
    return safe if safe == text else f"{safe}-{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:8]}"


def kind_of(key: str, path: str | Path) -> str | None:
    """The kind of file at a path, links followed: ``"folder"``, ``"file"``, ``"device"`` (or pipe or socket), or None.
    Raises UserError if it cannot be found out, for example in an unreadable folder.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{key} is '{path}' but it cannot be looked at: {error.strerror}") from error
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "device"


def names_in(key: str, folder: Path) -> list[str]:
    """Names in a folder. Raises UserError if it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise UserError(f"{key} is '{folder}' but it cannot be looked into: {error.strerror}") from error


def own_configuration(arguments: Sequence[str]) -> Path:
    """The first argument, the user's own YAML file. Raises UserError if it is none."""
    path = Path(arguments[0]) if arguments else Path()
    if path.suffix != ".yaml" or kind_of("the configuration", path) != "file":
        shown = f"'{path}'" if arguments else "missing"
        raise UserError(f"the configuration is {shown} but must be a file that ends with .yaml, the first argument")
    return path


def check_folder(key: str, folder: Path, *, name: str = "x" * 100) -> None:
    """Raise UserError unless a file ``name`` can be written into ``folder``, which may be missing. Tries it in a
    temporary folder in the nearest existing one.
    """
    place = folder.absolute()
    missing: list[str] = []
    while (kind := kind_of(key, place)) is None and place != place.parent:
        if os.path.islink(place):
            raise UserError(f"{key} is '{folder}' but {place} is a link to nowhere: choose another folder")
        missing.insert(0, place.name)
        place = place.parent
    if kind != "folder":
        raise UserError(f"{key} is '{folder}' but {place} is a {kind}: choose a folder that can be created")
    try:
        with tempfile.TemporaryDirectory(prefix=".try-", dir=place) as tried:
            inside = Path(tried, *missing)
            inside.mkdir(parents=True, exist_ok=True)
            (inside / name).write_bytes(_TRIED)
    except OSError as error:
        raise UserError(
            f"{key} is '{folder}' but nothing can be written there ({error.strerror}): choose another folder"
        ) from error


def check_file(key: str, path: Path) -> None:
    """Raise UserError unless the file can be written or replaced."""
    kind = kind_of(key, path)
    if kind not in (None, "file"):
        example = f", {key}={path / 'name'}" if kind == "folder" else ""
        raise UserError(f"{key} is '{path}', a {kind}: give the file to write{example}")
    # Its temporary name is longer, see `htrmrl_torchrl.checkpoints.files`.
    check_folder(key, path.parent, name=f".{path.name}.stage")


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Turns an OSError while writing into a UserError that names `what` was written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} could not be written: {error.strerror or error}") from error


def check_run_folder(run_dir: str, resume: str) -> None:
    """Raise UserError unless a run can go into ``run_dir`` and ``resume`` is a word or the path of a checkpoint. Writes
    nothing in the folder: another process may hold its lock, which `runs.lock` reports.
    """
    folder = Path(run_dir)
    place = folder.absolute()
    while (kind := kind_of("run_dir", place)) is None:
        place = place.parent
    if kind != "folder":
        raise UserError(f"run_dir is '{run_dir}' but {place} is a {kind}: choose a folder that can be created")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"run_dir is '{run_dir}' but {place} is not writable: choose a folder that can be written")
    if resume == "never" and place == folder.absolute() and any(name != LOCK for name in names_in("run_dir", place)):
        raise UserError(f"resume is never but run_dir '{run_dir}' is not empty: choose another run_dir or resume=auto")
    if resume not in ("auto", "never") and (found := kind_of("resume", resume)) != "file":
        there = "none is there" if found is None else f"a {found} is there"
        raise UserError(f"resume is {resume!r} but must be auto, never or the path of a checkpoint, and {there}")
