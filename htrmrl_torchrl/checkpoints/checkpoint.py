"""The checkpoints of a run on disk, their metadata, and the export of an agent alone.

A checkpoint is saved between two iterations, when every environment begins a new trial, so it needs no simulator state.
It holds weights, optimizer, task deck, random streams, counters and the resolved configuration.
"""

import math
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torchrl.checkpoint import Checkpoint

from htrmrl_torchrl.checkpoints.archive import (
    NotACheckpoint,
    TensorFiles,
    check_archive,
    read_states,
    refused_by_name,
    seal,
)
from htrmrl_torchrl.checkpoints.files import sync_folder
from htrmrl_torchrl.checkpoints.folder import read_agent_folder

_NAME = re.compile(r"(step|best)-([0-9]{12,18})\.torchrl")  # by frames
_LONGEST_ENVIRONMENT = 4000  # characters; a custom benchmark names up to 50 tasks


def checkpoints_of(folder: Path, kind: str) -> list[Path]:
    """The checkpoints of kind ``"step"`` or ``"best"`` in a run's ``checkpoints/`` folder, oldest first.

    A missing folder has none. Raises OSError if the folder cannot be read or is a broken link.
    """
    return [path for path in _named(folder, kind) if path.is_file() and not path.is_symlink()]


def _named(folder: Path, kind: str) -> list[Path]:
    """All entries named like a checkpoint, files or not. Raises as `checkpoints_of` does."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        if folder.is_symlink():
            raise
        return []
    found = (_NAME.fullmatch(name) for name in names)
    return sorted((folder / match[0] for match in found if match and match[1] == kind), key=frames_of)


def frames_of(path: Path) -> int:
    """Frames at which a checkpoint was saved, from its name."""
    return int(path.stem.rpartition("-")[2])


def latest_checkpoint(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest valid periodic checkpoint, and the fault of each newer one; raises as `checkpoints_of` does."""
    damaged: dict[Path, str] = {}
    for path in reversed(_named(folder, "step")):
        try:
            check_archive(path)
        except NotACheckpoint as error:
            damaged[path] = error.why
        except OSError as error:
            damaged[path] = f"cannot be read: {error.strerror or 'a link to nothing'}"
        else:
            return path, damaged
    return None, damaged


def read_saved(path: str | Path, names: Collection[str], *, optional: Collection[str] = ()) -> dict[str, Any]:
    """Some states of a checkpoint file, or of the folder of an agent, see `read_agent_folder`.

    Raises FileNotFoundError if there is nothing at `path`, and ValueError if it is damaged or something else.
    """
    return (read_agent_folder if os.path.isdir(path) else read_states)(path, names, optional=optional)


def check_saved(path: str | Path) -> None:
    """Raise as `read_saved` does unless ``path`` is an undamaged checkpoint of a training run, or such a folder."""
    if os.path.isdir(path):
        read_agent_folder(path, ["agent", "actor", "critic", "config", "progress", "versions"])
    else:
        check_archive(path)


def read_component(path: str | Path, name: str) -> dict[str, Any]:
    """A JSON component of a checkpoint or an agent's folder, unchanged: nothing in it is resolved or imported.

    ``name`` is ``"config"``, ``"agent"`` (arguments of `build_networks`), ``"versions"`` or ``"progress"``. Raises
    FileNotFoundError if there is nothing at `path`, ValueError if it is not a checkpoint of a training run.
    """
    component = read_saved(path, [name])[name]
    with refused_by_name(path):
        if name == "progress":
            return checked_progress(component, like={"frames": 0})
        if not isinstance(component, dict):
            raise ValueError(f"{name} is {component!r} but must be a dictionary")
        return component


class TrainedOn(NamedTuple):
    """Environment settings that a checkpoint states; the name is not looked up."""

    name: str
    benchmark_seed: int
    episodes_per_trial: int
    horizon: int | None


def read_environment(path: str | Path) -> TrainedOn:
    """Where the agent of a checkpoint was trained. Raises as `read_component` does."""
    config = read_component(path, "config")
    with refused_by_name(path):
        return environment_of(config)


def environment_of(config: Mapping[str, Any]) -> TrainedOn:
    """The same from the configuration itself; ValueError or LookupError if it does not say so."""
    env = config["env"]
    found = TrainedOn(*(env[field] for field in TrainedOn._fields))
    if not (isinstance(found.name, str) and found.name and len(found.name) <= _LONGEST_ENVIRONMENT):
        raise ValueError(f"env.name is {found.name!r}, which is not the name of an environment")
    for field, least in (("benchmark_seed", 0), ("episodes_per_trial", 1), ("horizon", 1)):
        number = getattr(found, field)
        if not ((_is_count(number) and number >= least) or (field == "horizon" and number is None)):
            raise ValueError(f"env.{field} is {number!r} but must be a whole number of at least {least}")
    return found


def checked_progress(saved: Any, *, like: Mapping[str, Any]) -> dict[str, Any]:
    """The counters of a run, each of its type in ``like``, which also supplies those that an older file lacks."""
    if not isinstance(saved, dict) or "frames" not in saved:
        raise ValueError("its progress does not say how many frames it was trained for")
    for name, value in saved.items():
        own = like.get(name, value)
        fits = type(value) is type(own) or (type(own) is float and type(value) is int)
        if isinstance(value, list):
            fits = fits and all(isinstance(entry, str) for entry in value)
        else:
            fits = fits and all(map(_is_number, value.values() if isinstance(value, dict) else [value]))
        if not fits:
            raise ValueError(f"its progress says {name}={value!r}, which does not have the type of {own!r}")
    return {**like, **saved}


def _is_number(value: Any) -> bool:
    """Whether it is a count (an integer from 0) or a finite float."""
    return _is_count(value) or (type(value) is float and math.isfinite(value))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


class _Held:
    """A saved state that is written again without its module."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def state_dict(self) -> Any:
        return self._state


def export_agent(path: str | Path, out: str | Path) -> Path:
    """Writes the agent of the checkpoint at ``path`` to the file ``out`` (replaced), a third of the size.

    The result can act, be evaluated and be inspected. It lacks optimizer, task deck and random streams, so no run can
    be continued from it. Raises as `read_component` does.
    """
    out = Path(out)
    described = {name: read_component(path, name) for name in ("agent", "config", "versions", "progress")}
    target = Checkpoint(format="archive", **described)
    for name, state in read_saved(path, ["actor", "critic"]).items():
        target.register(name, _Held(state), adapter=TensorFiles())
    out.parent.mkdir(parents=True, exist_ok=True)
    return save_whole(target, out, stage=out.with_name(f".{out.name}.stage"), metadata={})


def save_whole(checkpoint: Checkpoint, path: Path, *, stage: Path, metadata: dict[str, Any]) -> Path:
    """Write the file into a hidden folder beside ``path``, then rename it once it is completely on disk."""
    try:
        staged = checkpoint.save(stage / path.name, metadata=metadata)
        seal(staged)
        os.replace(staged, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return path
