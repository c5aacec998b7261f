"""What a training run saves, and how it goes on from there, on top of `torchrl.checkpoint`.

A checkpoint is one file, written at the end of an iteration, where every lane has just begun a new trial: no simulator
state is needed. It holds weights, optimizer, the task deck, all random streams, counters, and the resolved
configuration.
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tensordict.nn import TensorDictModuleBase
from torch.optim import Optimizer
from torchrl.checkpoint import Checkpoint, CheckpointRotation, GlobalRNGState

from htrmrl_torchrl.versions import versions


class Resumable(Protocol):
    """An environment or a memory whose state at a trial boundary can be saved."""

    def checkpoint_state(self) -> dict[str, Any]: ...

    def load_checkpoint_state(self, state: dict[str, Any]) -> None: ...


class _State:
    """Gives a `Resumable` the method names that `torchrl.checkpoint` looks for."""

    def __init__(self, owner: Resumable) -> None:
        self._owner = owner

    def state_dict(self) -> dict[str, Any]:
        return self._owner.checkpoint_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._owner.load_checkpoint_state(state)


class RunCheckpoints:
    """The ``checkpoints/`` folder of a run: the latest few, and the best one on ``val``.

    Args:
        folder: where they go.
        keep: how many of the latest stay.
        agent: JSON-compatible arguments of `htrmrl_torchrl.networks.build_networks`, which make a checkpoint
            self-contained.
        config: the resolved configuration.
        progress: mutable JSON-compatible mapping with at least ``frames``; restored in place.
        actor, critic, optimizer: what is trained.
        env, memory: whose streams and counters continue. A foreign environment cannot be saved (``None``): it begins
            anew.
        storage: whose context-only frames later trials may still be shown (``scope="lane"``); ``None`` for others.

    Example:
        see ``recipes/ppo.py``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        agent: dict[str, Any],
        config: dict[str, Any],
        progress: dict[str, Any],
        actor: TensorDictModuleBase,
        critic: TensorDictModuleBase,
        optimizer: Optimizer,
        env: Resumable | None,
        memory: Resumable,
        storage: Resumable | None = None,
    ) -> None:
        self._progress = progress
        self._checkpoint = Checkpoint(
            format="archive",
            agent=agent,
            config=config,
            versions=versions(),
            progress=progress,
            actor=actor,
            critic=critic,
            optimizer=optimizer,
            **({} if env is None else {"env": _State(env)}),
            memory=_State(memory),
            **({} if storage is None else {"storage": _State(storage)}),
            rng=GlobalRNGState(),
        )
        self._latest = CheckpointRotation(folder, keep_last=keep, prefix="step")
        self._best = CheckpointRotation(folder, keep_last=1, keep_best=("val_success", "max"), prefix="best")

    def save(self) -> Path:
        """Saves the present; older ones beyond `keep` go."""
        return self._latest.save(self._checkpoint, step=self._progress["frames"])

    def save_best(self, val_success: float) -> None:
        """Saves the present as the best one."""
        metadata = {"val_success": val_success}
        self._best.save(self._checkpoint, step=self._progress["frames"], metadata=metadata)

    def restore(self, path: Path) -> None:
        """Puts everything back to where it was at `path`; the global random state last, after what might draw."""
        check_archive(path)
        names = set(self._checkpoint.components) - {"agent", "config", "versions", "rng"}
        self._checkpoint.load(path, components=names)
        self._checkpoint.load(path, components=["rng"])


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest periodic checkpoint in a run's ``checkpoints/`` folder, if there is one."""
    return CheckpointRotation(folder, keep_last=1, prefix="step").latest() if folder.is_dir() else None


def read_component(path: str | Path, name: str) -> dict[str, Any]:
    """A JSON component of a checkpoint.

    Args:
        path: of the checkpoint.
        name: ``"config"`` (of the run), ``"agent"`` (arguments of `build_networks`), ``"versions"`` (of packages) or
            ``"progress"`` (``frames`` trained, commits of the code, ...).

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if it is not a checkpoint of a training run.
    """
    if name not in check_archive(path):
        raise ValueError(_not_ours(path))
    component: dict[str, Any] = {}
    with refused_by_name(path):
        Checkpoint(**{name: component}).load(path, components=[name])
    return component


def check_archive(path: str | Path) -> list[str]:
    """The names of a checkpoint's components, after refusing what could run code when it is loaded.

    Tensordict 0.14 unpickles ``other.pickle`` or ``pickle.pkl`` wherever a saved tensordict has them. What we save is
    tensors and JSON only, so nothing else is let through; a folder is not either, of which torchrl reads all that is
    there.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if it is not a checkpoint of a training run.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    if not path.is_file():
        raise ValueError(_not_ours(path))
    with refused_by_name(path):
        components = Checkpoint.manifest(path)["components"]
    files = [file for record in components.values() for file in record["files"]]
    if unsafe := [file for file in files if not file.endswith((".json", ".memmap"))]:
        raise ValueError(f"{path} holds {unsafe[0]}, but tensors and JSON are all that is read from a checkpoint.")
    return list(components)


@contextmanager
def refused_by_name(path: str | Path) -> Iterator[None]:
    """Turns what torchrl and zipfile raise for foreign and damaged files into a ValueError that names the file."""
    try:
        yield
    except (
        RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(_not_ours(path)) from error


def _not_ours(path: str | Path) -> str:
    return f"{path} is not a checkpoint of this package, or damaged; give one of a run's checkpoints/ folder."
