"""Checkpoints of a training run, taken between two iterations, and how a run continues from them."""

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torch.optim import Optimizer
from torchrl import torchrl_logger
from torchrl.checkpoint import Checkpoint, GlobalRNGState

from htrmrl_torchrl.checkpoints.archive import TensorFiles, read_states, refused_by_name
from htrmrl_torchrl.checkpoints.checkpoint import checked_progress, checkpoints_of, frames_of, save_whole
from htrmrl_torchrl.checkpoints.versions import versions
from htrmrl_torchrl.runs.progress import Progress

_STAGE = ".stage"  # where a file is written before it gets its name


class Resumable(Protocol):
    """An environment or a memory whose state at a trial boundary can be saved."""

    def checkpoint_state(self) -> dict[str, Any]: ...
    def load_checkpoint_state(self, state: dict[str, Any]) -> None: ...


class _RandomStreams:
    """The global random streams; GPU streams are reseeded if the number of GPUs differs."""

    def state_dict(self) -> dict[str, Any]:
        return GlobalRNGState().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state.get("torch_cuda", [])) == torch.cuda.device_count():
            GlobalRNGState().load_state_dict(state)
            return
        GlobalRNGState().load_state_dict({name: stream for name, stream in state.items() if name != "torch_cuda"})
        with torch.random.fork_rng(devices=[]):  # GPU seeds come from the CPU's stream, which does not change
            torch.cuda.manual_seed_all(int(torch.randint(2**62, ())))


class _Marked:
    """The state of a component at the last `mark`, with the method names of `torchrl.checkpoint`."""

    def __init__(self, read: Callable[[], Any], load: Callable[[Any], object]) -> None:
        self._read, self.load_state_dict = read, load
        self.marked: Any = None

    def read(self) -> Any:
        return _copied(self._read())

    def state_dict(self) -> Any:
        return self.marked


def _learned(owner: nn.Module | Optimizer | _RandomStreams) -> _Marked:
    return _Marked(owner.state_dict, owner.load_state_dict)


def _resumed(owner: Resumable) -> _Marked:
    return _Marked(owner.checkpoint_state, owner.load_checkpoint_state)


def _copied(value: Any) -> Any:
    """A faster `copy.deepcopy`, for every iteration: only tensors and containers can change."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(entry) for entry in value)
    return value


class RunCheckpoints:
    """The ``checkpoints/`` folder of a run: the latest few, and the best one on ``val``.

    `mark` copies the state between two iterations in memory; `save` writes that copy, at any later time. A file gets
    its name after all of it is on disk: a killed process leaves at most a hidden folder, which the next `rewind` or
    `save` removes. Only ``step-<frames>.torchrl`` and ``best-<frames>.torchrl`` are read or removed.

    Args:
        folder: created with the first checkpoint only: a run whose folder was moved away stops saving.
        keep: how many of the latest stay.
        agent: JSON-compatible arguments of `build_networks`, which make a checkpoint self-contained.
        config: the resolved configuration.
        progress: restored in place; its fields must have the same types in a checkpoint.
        actor, critic, optimizer, rewards: what is trained, and the reward normaliser.
        env, memory: whose streams and counters continue; a foreign environment (``None``) starts again.
        storage: whose frames later trials may still see (``scope="lane"``); else ``None``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        agent: dict[str, Any],
        config: dict[str, Any],
        progress: Progress,
        actor: TensorDictModuleBase,
        critic: TensorDictModuleBase,
        optimizer: Optimizer,
        rewards: nn.Module,
        env: Resumable | None,
        memory: Resumable,
        storage: Resumable | None = None,
    ) -> None:
        self._folder, self._keep = folder, keep
        self._identity = _identity(folder) if folder.is_dir() else None
        self._progress, self._marked_progress = progress, asdict(progress)
        self._optimizer = optimizer
        self._marked = {
            "actor": _learned(actor),
            "critic": _learned(critic),
            "optimizer": _learned(optimizer),
            "rewards": _learned(rewards),
            "memory": _resumed(memory),
            "rng": _learned(_RandomStreams()),
            **({} if env is None else {"env": _resumed(env)}),
            **({} if storage is None else {"storage": _resumed(storage)}),
        }
        self._checkpoint = Checkpoint(
            format="archive", agent=agent, config=config, versions=versions(), progress=self._marked_progress
        )
        for name, component in self._marked.items():
            self._checkpoint.register(name, component, adapter=TensorFiles())
        self._saved: Path | None = None  # the marked state on disk

    def mark(self) -> None:
        """Copy the current state for `save` and `save_best`. Raises RuntimeError in the middle of a trial; then the
        last mark stays.
        """
        states = {name: component.read() for name, component in self._marked.items()}  # all or, if one fails, none
        for name, state in states.items():
            self._marked[name].marked = state
        self._marked_progress |= asdict(self._progress)
        self._saved = None

    def save(self) -> Path:
        """Writes the marked state, unless it is on disk already, and removes older ones beyond `keep`. Raises OSError
        if it cannot be written, for example to a full disk; older checkpoints stay.
        """
        if self._saved is None:
            self._saved = self._write("step", {})
        self._prune("step", self._keep)
        return self._saved

    def save_best(self, val_success: float) -> None:
        """Writes the marked state in place of the previous best one. Raises OSError as `save` does."""
        self._write("best", {"val_success": val_success})
        self._prune("best", 1)

    def restore(self, path: Path, states: dict[str, Any] | None = None) -> None:
        """Loads the state at `path`, or ``states`` that `read_states` has read there; the global random state last,
        because loading may draw. Raises FileNotFoundError if nothing is there, and ValueError for a damaged file, one
        of other networks, or an exported agent (no optimizer).
        """
        states = read_states(path) if states is None else states
        if missing := sorted({*self._marked} - {*states}):
            raise ValueError(
                f"{path} has no {missing[0]}, which a run needs to continue: an exported agent can only act and be "
                "evaluated; continue from a checkpoint of a run's checkpoints/ folder."
            )
        _say_other_versions(path, states.get("versions"))
        own = asdict(self._progress)
        with refused_by_name(path):
            progress = checked_progress(states.get("progress"), like=own)
        with refused_by_name(path, "optimizer"):
            _check_optimizer(states["optimizer"], self._optimizer)
        for name in (*sorted({*self._marked} - {"rng"}), "rng"):
            with refused_by_name(path, name):
                self._marked[name].load_state_dict(states[name])
        for name in own:
            setattr(self._progress, name, progress[name])
        self._marked_progress |= asdict(self._progress)

    def rewind(self) -> None:
        """Makes the marked state the latest: removes checkpoints with more frames. Raises OSError if it cannot be
        written; then nothing is removed.
        """
        self._saved = self._write("step", {})
        for prefix in ("best", "step"):
            for path in checkpoints_of(self._folder, prefix):
                if frames_of(path) > self._marked_progress["frames"]:
                    path.unlink()
        self._prune("step", self._keep)  # last: until the newer ones are gone, the marked one is the oldest

    def _write(self, prefix: str, metadata: dict[str, Any]) -> Path:
        self._check_folder()
        path = self._folder / f"{prefix}-{self._marked_progress['frames']:012d}.torchrl"
        _remove(self._folder / _STAGE)  # left by a killed process
        return save_whole(self._checkpoint, path, stage=self._folder / _STAGE, metadata=metadata)

    def _check_folder(self) -> None:
        """Raises FileNotFoundError if the folder was moved or replaced."""
        if self._identity is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._identity = _identity(self._folder)
        elif not self._folder.exists():
            raise FileNotFoundError(errno.ENOENT, "its folder was moved or removed", str(self._folder))
        elif _identity(self._folder) != self._identity:
            raise FileNotFoundError(errno.ENOENT, "its folder was moved, another is in its place", str(self._folder))

    def _prune(self, kind: str, keep: int) -> None:
        """Removes old files if possible; those beyond the marked state stay, because they are unchecked."""
        with suppress(OSError):
            found = [p for p in checkpoints_of(self._folder, kind) if frames_of(p) <= self._marked_progress["frames"]]
            for path in found[:-keep]:
                path.unlink()


def _identity(folder: Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check_optimizer(state: Any, optimizer: Optimizer) -> None:
    """Raise ValueError for a state that the optimizer would load and then fail with in its first step."""
    own = optimizer.state_dict()["param_groups"]
    if [*map(len, (group["params"] for group in state["param_groups"]))] != [len(group["params"]) for group in own]:
        raise ValueError("it is of other parameters")
    for group, like in zip(state["param_groups"], own, strict=True):
        for name in group.keys() & like.keys():
            if _kinds(group[name]) != _kinds(like[name]):
                raise ValueError(f"{name} is {group[name]!r} where such as {like[name]!r} should be")
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    if beyond := {*state["state"]} - {*range(len(shapes))}:
        raise ValueError(f"it has moments of {beyond} and there are {len(shapes)} parameters")
    for index, moments in state["state"].items():
        for name, value in moments.items():
            if value.shape not in (torch.Size(), shapes[index]) or not value.is_floating_point():
                raise ValueError(f"{name} of parameter {index} is of shape {list(value.shape)}, not {[*shapes[index]]}")


def _kinds(value: Any) -> Any:
    return [*map(_kinds, value)] if isinstance(value, list | tuple) else type(value)


def _say_other_versions(path: Path, saved: Any) -> None:
    """Warns that other package versions may change the numbers."""
    now, before = versions(), saved if isinstance(saved, dict) else {}
    differing = [
        f"{name} {before[name]} then and {now[name]} now" for name in now if before.get(name, now[name]) != now[name]
    ]
    if differing:
        torchrl_logger.warning(f"{path} was saved with other versions: {', '.join(differing)}.")
