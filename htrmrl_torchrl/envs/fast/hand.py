"""A cache of the simulation state after the hand has moved to its initial pose.

Each reset moves the hand in 250 physics steps, twice, nearly always from the same state. The key holds everything that
determines the result, so a hit is bit-identical: the class, the integration state before, the hand's destination, and
the model's arrays that tasks change (``tests/envs/fast/test_hand.py`` checks that no other array changes).
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
MUTABLE_MODEL = ("body_pos", "body_quat", "site_pos")
# Poses lag one physics step behind the state, and Meta-World reads them before it computes them again.
_POSES = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis"),
    *("geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "cam_xpos", "cam_xmat"),
)
_CAPACITY = 256  # per class; one entry is about 20 kB


@dataclass(frozen=True)
class Snapshot:
    """One simulation state and the last computed poses."""

    state: npt.NDArray[np.float64]
    poses: tuple[npt.NDArray[np.float64], ...]

    @classmethod
    def take(cls, model: Any, data: Any) -> "Snapshot":
        return cls(integration_state(model, data), tuple(getattr(data, name).copy() for name in _POSES))

    def restore(self, model: Any, data: Any) -> None:
        mujoco.mj_setState(model, data, self.state, _STATE)
        for name, pose in zip(_POSES, self.poses, strict=True):
            getattr(data, name)[:] = pose


class HandCache:
    """Least-recently-used cache of snapshots."""

    def __init__(self) -> None:
        self._snapshots: OrderedDict[tuple[Any, ...], Snapshot] = OrderedDict()

    def find(self, key: tuple[Any, ...]) -> Snapshot | None:
        snapshot = self._snapshots.get(key)
        if snapshot is not None:
            self._snapshots.move_to_end(key)
        return snapshot

    def keep(self, key: tuple[Any, ...], snapshot: Snapshot) -> None:
        self._snapshots[key] = snapshot
        if len(self._snapshots) > _CAPACITY:
            self._snapshots.popitem(last=False)


def hand_key(model: Any, data: Any, destination: npt.NDArray[np.float64], steps: int) -> tuple[Any, ...]:
    """Everything, except the class, that determines the result of ``_reset_hand``."""
    mutable = tuple(getattr(model, name).tobytes() for name in MUTABLE_MODEL)
    return (*mutable, integration_state(model, data).tobytes(), destination.tobytes(), steps)


def integration_state(model: Any, data: Any) -> npt.NDArray[np.float64]:
    """MuJoCo's full integration state: time, qpos, qvel, ..., warm start, mocap."""
    state = np.empty(mujoco.mj_stateSize(model, _STATE))
    mujoco.mj_getState(model, data, state, _STATE)
    return state
