"""The wheel, installed where there is no clone."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def plain_environment() -> dict[str, str]:
    """The variables of this process without those that lead into the clone."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def build_wheel(folder: Path) -> Path:
    """The wheel of this clone, made in a copy of its files."""
    source = folder / "source"
    for name in ("htrmrl_torchrl", "recipes", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path, *, packages: Iterable[str]) -> Path:
    """The Python of a new environment with the wheel; other packages are found in these folders."""
    python = folder / "environment" / "bin" / "python"
    run = [sys.executable, "-m", "venv", "--without-pip", str(folder / "environment")]
    subprocess.run(run, check=True, capture_output=True, env=plain_environment())
    (site,) = (folder / "environment").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(packages))
    _pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    return python


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    subprocess.run(command, check=True, capture_output=True, env=plain_environment())


def required(names: Sequence[str]) -> set[str]:
    """These distributions and all that they require, as installed here, by their canonical names.

    Example:
        >>> sorted(required(["matplotlib"]) & {"numpy", "torch"})
        ['numpy']
    """
    found, waiting = set(), [Requirement(name) for name in names]
    seen = set()
    while waiting:
        asked = waiting.pop()
        if (key := (asked.name.lower().replace("_", "-"), *sorted(asked.extras))) in seen:
            continue
        seen.add(key)
        found.add(key[0])
        for line in distribution(asked.name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *asked.extras)):
                waiting.append(needed)
    return found


def link(names: Iterable[str], folder: Path) -> Path:
    """A folder of packages that has these distributions only, as links to those installed here."""
    folder.mkdir()
    for name in names:
        one = distribution(name)
        for top in {file.parts[0] for file in one.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(one.locate_file(top))))
    return folder
