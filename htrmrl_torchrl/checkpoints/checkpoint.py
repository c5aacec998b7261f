"""The checkpoints of a run on disk, what each says of itself, and an agent alone to hand on.

A checkpoint is one file of the boundary between two iterations, where every environment has just begun a new trial: no
simulator state is needed. It holds weights, optimizer, the task deck, all random streams, counters, and the resolved
configuration. `htrmrl_torchrl.checkpoints.archive` says how the file is made, `htrmrl_torchrl.runs.checkpoint` when.
"""

import math
import os
import re
import shutil
from collections.abc import Mapping
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

_NAME = re.compile(r"(step|best)-([0-9]{12,18})\.torchrl")  # by frames
_LONGEST_ENVIRONMENT = 4000  # characters; a custom benchmark names up to 50 tasks


def checkpoints_of(folder: Path, kind: str) -> list[Path]:
    """The checkpoints of kind ``"step"`` or ``"best"`` in a run's ``checkpoints/`` folder, oldest first.

    The folder may be missing. Raises OSError if it cannot be read, or is a link to nothing.
    """
    return [path for path in _named(folder, kind) if path.is_file() and not path.is_symlink()]


def _named(folder: Path, kind: str) -> list[Path]:
    """Everything that has the name of a checkpoint, whatever it is. Raises as `checkpoints_of` does."""
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
    """The newest whole periodic checkpoint, and what is wrong with each newer one; raises as `checkpoints_of` does."""
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


def read_component(path: str | Path, name: str) -> dict[str, Any]:
    """A JSON component of a checkpoint, as it stands there: nothing in it is resolved or imported.

    Args:
        path: of the checkpoint.
        name: ``"config"``, ``"agent"`` (arguments of `build_networks`), ``"versions"`` or ``"progress"``.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if it is not a checkpoint of a training run.
    """
    component = read_states(path, [name])[name]
    with refused_by_name(path):
        if name == "progress":
            return checked_progress(component, like={"frames": 0})
        if not isinstance(component, dict):
            raise ValueError(f"{name} is {component!r} where names with values should be")
        return component


class TrainedOn(NamedTuple):
    """What a checkpoint says of the environment of its run: words, which nobody has looked up."""

    name: str
    benchmark_seed: int
    episodes_per_trial: int
    horizon: int | None


def read_environment(path: str | Path) -> TrainedOn:
    """Where the agent of a checkpoint was trained. Raises as `read_component` does."""
    config = read_component(path, "config")
    with refused_by_name(path):
        env = config["env"]
        found = TrainedOn(*(env[field] for field in TrainedOn._fields))
        if not (isinstance(found.name, str) and found.name and len(found.name) <= _LONGEST_ENVIRONMENT):
            raise ValueError(f"env.name is {found.name!r}, which is no name of an environment")
        for field, least in (("benchmark_seed", 0), ("episodes_per_trial", 1), ("horizon", 1)):
            number = getattr(found, field)
            if not ((_is_count(number) and number >= least) or (field == "horizon" and number is None)):
                raise ValueError(f"env.{field} is {number!r} where a whole number of at least {least} should be")
        return found


def checked_progress(saved: Any, *, like: Mapping[str, Any]) -> dict[str, Any]:
    """The counters of a run, each of the kind that it has in ``like``; what is younger than the file is as there."""
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
            raise ValueError(f"its progress says {name}={value!r}, which is not of the kind of {own!r}")
    return {**like, **saved}


def _is_number(value: Any) -> bool:
    """Whether it can be counted with: not negative if it counts, finite if it measures."""
    return _is_count(value) or (type(value) is float and math.isfinite(value))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


class _Held:
    """The state of a component, without what it is the state of."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def state_dict(self) -> Any:
        return self._state


def export_agent(path: str | Path, out: str | Path) -> Path:
    """Writes the agent of the checkpoint at ``path`` to the file ``out``, which is replaced: a third of the size.

    It acts, is evaluated and inspected like the checkpoint. What only training needs (optimizer, task deck, random
    streams) is left out, so no run goes on from it. Raises as `read_component` does.
    """
    out = Path(out)
    described = {name: read_component(path, name) for name in ("agent", "config", "versions", "progress")}
    target = Checkpoint(format="archive", **described)
    for name, state in read_states(path, ["actor", "critic"]).items():
        target.register(name, _Held(state), adapter=TensorFiles())
    out.parent.mkdir(parents=True, exist_ok=True)
    return save_whole(target, out, stage=out.with_name(f".{out.name}.stage"), metadata={})


def save_whole(checkpoint: Checkpoint, path: Path, *, stage: Path, metadata: dict[str, Any]) -> Path:
    """Makes the file in a hidden folder beside it and gives it its name when all of it is on the disk."""
    try:
        staged = checkpoint.save(stage / path.name, metadata=metadata)
        seal(staged)
        os.replace(staged, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return path
