"""Names of a package that are imported when they are first used.

Environment workers import the package too: they hold simulators only, and without torch they start in a fraction of the
time.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str], *, before: Callable[[], None] | None = None
) -> Callable[[str], Any]:
    """A module-level ``__getattr__`` (PEP 562) for a package whose names live in the modules ``homes[name]``.

    ``before`` is called before one of them is imported.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if before is not None:
            before()
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return get
