"""Package versions, recorded in files."""

import platform
from importlib.metadata import version

PACKAGES = ("htrmrl_torchrl", "torch", "torchrl", "tensordict", "gymnasium", "metaworld", "mujoco", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of every package that may affect results."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
