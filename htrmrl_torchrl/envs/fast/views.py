"""MuJoCo data with cached named accessors, because Meta-World reads the same few names at every step."""

from collections.abc import Callable
from typing import Any

import mujoco


class NamedData(mujoco.MjData):
    """``mujoco.MjData`` whose ``body``, ``geom``, ``site`` and ``joint`` cache their accessors.

    Example:
        >>> xml = '<mujoco><worldbody><body name="a" pos="1 2 3"/></worldbody></mujoco>'
        >>> model = mujoco.MjModel.from_xml_string(xml)
        >>> data = NamedData(model)
        >>> mujoco.mj_forward(model, data)
        >>> data.body("a").xpos.tolist()
        [1.0, 2.0, 3.0]
        >>> data.body("a") is data.body("a")
        True
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        super().__init__(model)
        for kind in ("body", "geom", "site", "joint"):
            # The table's bound method hides the slow one of the class and costs no Python frame per call.
            setattr(self, kind, _Table(getattr(super(), kind)).__getitem__)

    def release(self) -> None:
        """Drops the cached views: each keeps this object and its model alive, unseen by the garbage collector."""
        for kind in ("body", "geom", "site", "joint"):
            getattr(self, kind).__self__.clear()


class _Table(dict[str, "_Live"]):
    """Accessors by name, filled on demand."""

    def __init__(self, look_up: Callable[[str], Any]) -> None:
        super().__init__()
        self._look_up = look_up

    def __missing__(self, name: str) -> "_Live":
        self[name] = accessor = _Live(self._look_up(name))
        return accessor


class _Live:
    """One accessor. Reading an attribute caches a live view; setting it writes into that view."""

    def __init__(self, accessor: Any) -> None:
        self.__dict__["_accessor"] = accessor

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._accessor, name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        getattr(self, name)[:] = value
