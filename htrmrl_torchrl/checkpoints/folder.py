"""An agent as a folder to share, in the files that model hubs show: weights, settings and a model card.

    model.safetensors   tensors "actor.*" and "critic.*"
    config.json         arguments of `build_networks`, the checksum of the weights and, if the agent was trained by a
                        recipe, its configuration, frames and package versions
    README.md           the model card, for people only

Nothing in the files is imported or executed.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from htrmrl_torchrl.checkpoints.archive import refused_by_name
from htrmrl_torchrl.checkpoints.files import read_json, read_regular, write_whole

MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_HEADER = {"format": "htrmrl_torchrl.agent", "format_version": 1}
_PARTS = frozenset({"actor", "critic"})
_LARGEST_CONFIG, _LARGEST_MODEL = 1 << 24, 1 << 34  # bytes


def is_agent_folder(path: str | Path) -> bool:
    """Whether ``path`` is a folder with the files of an agent."""
    return all((Path(path) / name).is_file() for name in (MODEL, CONFIG))


def write_agent_folder(folder: str | Path, states: Mapping[str, Any], *, card: str) -> Path:
    """Writes `states`, see `read_agent_folder`, and the card; creates the folder and replaces these three files.

    Raises ValueError if an argument of the networks is no JSON, and OSError if a file cannot be written.
    """
    folder = Path(folder)
    model = save(_flat(states), metadata={"format": "pt"})
    described = {name: state for name, state in states.items() if name not in _PARTS}
    content = {**_HEADER, "model_sha256": _digest(model), **described}
    try:
        config = json.dumps(content, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{CONFIG} holds numbers, words and lists, and these networks were built with something else ({error}); "
            "name code of your own by its path, package.module:name."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / MODEL, model)
    write_whole(folder / CARD, card)
    write_whole(folder / CONFIG, config + "\n")  # last: it has the checksum of the weights
    return folder


def read_agent_folder(folder: str | Path, names: Collection[str], *, optional: Collection[str] = ()) -> dict[str, Any]:
    """Some states of an agent's folder by name, and those ``optional`` ones that are there.

    ``agent``: the arguments of `build_networks`. ``actor``, ``critic``: their weights. If a recipe trained the agent,
    ``config``, ``progress`` and ``versions`` as in a checkpoint. Raises FileNotFoundError if there is nothing, and
    `NotACheckpoint` (a ValueError) for a damaged folder or one of something else.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"There is no folder {folder}.")
    with refused_by_name(folder):
        try:
            states = _read(folder, weights=not _PARTS.isdisjoint(names))
            if missing := [name for name in names if name not in states]:
                raise ValueError(f"it has no {missing[0]}")
            return {name: states[name] for name in (*names, *optional) if name in states}
        except SafetensorError as error:
            raise ValueError(f"{MODEL} cannot be read: {error}") from error


def _read(folder: Path, *, weights: bool) -> dict[str, Any]:
    if missing := [name for name in (CONFIG, MODEL) if not (folder / name).is_file()]:
        raise ValueError(f"it has no file {missing[0]}")
    states = read_json(read_regular(folder / CONFIG, largest=_LARGEST_CONFIG))
    if not isinstance(states, dict) or [states.pop(name, None) for name in _HEADER] != list(_HEADER.values()):
        raise ValueError(f"its {CONFIG} has no {_HEADER}")
    digest = states.pop("model_sha256", None)
    if weights:
        model = read_regular(folder / MODEL, largest=_LARGEST_MODEL)
        if _digest(model) != digest:
            raise ValueError(f"the checksum of its {MODEL} is not the one in {CONFIG}")
        states |= _by_part(load(model))
    return states


def _flat(states: Mapping[str, Any]) -> dict[str, Tensor]:
    """Actor and critic in one dictionary; copies, because the format stores no tensor under two names."""
    parts = ((part, name, tensor) for part in sorted(_PARTS) for name, tensor in states[part].items())
    return {f"{part}.{name}": tensor.detach().cpu().contiguous().clone() for part, name, tensor in parts}


def _by_part(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Inverse of `_flat`."""
    states: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        if part not in states:
            raise ValueError(f"{MODEL} holds {key!r}, which is neither of the actor nor of the critic")
        states[part][name] = tensor
    return states


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
