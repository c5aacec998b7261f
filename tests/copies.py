"""All ways to copy an object that its user may take."""

import copy
import io
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch


def saved(value: Any) -> Any:
    """Through a file of `torch.save`."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": saved,
    # As multiprocessing sends it: torch shares the memory of tensors.
    "sent": lambda value: pickle.loads(ForkingPickler.dumps(value)),
}
