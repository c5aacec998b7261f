"""Import a package's names at first use, so that environment workers import the package without torch."""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str, file: str, *, before: Callable[[], None] | None = None) -> Callable[[str], Any]:
    """A module-level ``__getattr__`` (PEP 562) for the names that ``file`` imports under ``if TYPE_CHECKING``.

    ``package`` and ``file`` are the caller's ``__name__`` and ``__file__``; ``before`` is called before each import.
    """
    imports = [node for node in ast.walk(ast.parse(Path(file).read_bytes())) if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if before is not None:
            before()
        return getattr(import_module(homes[name]), name)

    return get
