"""Which versions produced a file."""

import platform
from importlib.metadata import version

PACKAGES = ("htrmrl_torchrl", "torch", "torchrl", "tensordict", "gymnasium", "metaworld", "mujoco", "numpy")


def versions() -> dict[str, str]:
    """Of Python and of every package that may change a number."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
