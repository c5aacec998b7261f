"""Recipes import the library, never the reverse, and configuration stops at the recipe."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {"recipes", "configs", "tests", "hydra", "omegaconf"}


def imported_packages(source: str) -> Iterator[str]:
    """Top-level names of everything ``source`` imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", sorted((ROOT / "htrmrl_torchrl").rglob("*.py")), ids=lambda path: path.name)
def test_library_imports_neither_recipes_nor_config_tools(path: Path) -> None:
    assert not FORBIDDEN & set(imported_packages(path.read_text(encoding="utf-8")))


# Each may import those before it, and none behind it.
ORDER = [
    "_lazy", "dotted", "keys", "faults", "extras", "specs", "progress", "envs", "parallel", "encoders", "memory",
    "replay", "checkpoints", "media", "agent", "ppo", "evaluation", "runs", "inspection", "networks", "cli",
]  # fmt: skip


def imported_parts(path: Path) -> Iterator[str]:
    """Parts of the package that a module imports, inside functions and for type checking too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "htrmrl_torchrl":
            inside = node.module.split(".")[1:]
            yield from inside[:1] or [alias.name for alias in node.names]


@pytest.mark.parametrize("part", ORDER)
def test_no_part_knows_a_later_one(part: str) -> None:
    folder = ROOT / "htrmrl_torchrl" / part
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    assert files and {name for path in files for name in imported_parts(path)} <= {*ORDER[: ORDER.index(part) + 1]}


def test_every_part_has_its_place_and_says_what_belongs_in_it() -> None:
    package = ROOT / "htrmrl_torchrl"
    parts = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__"} == {*ORDER}
    for name in ORDER:
        if (package / name).is_dir():
            assert ast.get_docstring(ast.parse((package / name / "__init__.py").read_text(encoding="utf-8")))


def test_every_test_stands_where_its_module_stands() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests")
        assert (ROOT / "htrmrl_torchrl" / folder).is_dir() or (ROOT / folder).is_dir(), path


WITHOUT_TORCH = """
import runpy, sys
import htrmrl_torchrl.envs.fast, htrmrl_torchrl.envs.metaworld, htrmrl_torchrl.envs.workers
for recipe in sys.argv[1:]:
    runpy.run_path(recipe, run_name="__mp_main__")  # as a spawned worker does
assert "torch" not in sys.modules
"""


def test_environment_workers_import_no_torch() -> None:
    recipes = [str(path) for path in sorted((ROOT / "recipes").glob("[!_]*.py")) if path.name != "ppo.py"]
    assert len(recipes) == 13
    command = [sys.executable, "-c", WITHOUT_TORCH, *recipes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["htrmrl_torchrl", "htrmrl_torchrl.envs"])
def test_names_that_are_imported_at_their_first_use(package: str) -> None:
    module = importlib.import_module(package)
    assert all(getattr(module, name).__name__ == name for name in module.__all__)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018
    with pytest.raises(ImportError):
        exec(f"from {package} import nothing")


def test_the_check_sees_imports_inside_functions() -> None:
    source = "import torch\ndef f():\n    from omegaconf import OmegaConf\n    import recipes.ppo as loop\n"
    assert FORBIDDEN & set(imported_packages(source)) == {"omegaconf", "recipes"}
