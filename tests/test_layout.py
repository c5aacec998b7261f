"""Recipes import the library, never the reverse, and configuration stops at the recipe."""

import ast
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
    assert not FORBIDDEN & set(imported_packages(path.read_text()))


def test_the_check_sees_imports_inside_functions() -> None:
    source = "import torch\ndef f():\n    from omegaconf import OmegaConf\n    import recipes._cli as c\n"
    assert FORBIDDEN & set(imported_packages(source)) == {"omegaconf", "recipes"}
