"""Names of a package that are imported when they are first used.

Environment workers import the package too: they hold simulators only, and without torch they start in a fraction of the
time.
"""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str, file: str, *, before: Callable[[], None] | None = None) -> Callable[[str], Any]:
    """A module-level ``__getattr__`` (PEP 562) for the names that a package imports under ``if TYPE_CHECKING``.

    Args:
        package, file: its ``__name__`` and ``__file__``; the imports in the latter say where each name lives.
        before: called before one of them is imported.
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
