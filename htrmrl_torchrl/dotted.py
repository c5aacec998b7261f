"""User code named by a dotted path ``package.module:name``: window strategies, encoders and environments.

A path that the caller writes is imported. A path read from a file is imported only if trusted, see `check_trusted`.
"""

import importlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

_BENCHMARKS = ("ML1", "ML10", "ML25", "ML45", "custom")  # what may stand before the colon of a built-in name


def is_dotted_path(name: object) -> bool:
    """Whether ``name`` has the form of a dotted path (also ``package.module.name``); no built-in name has it.

    Example:
        >>> is_dotted_path("my_lab.encoders:Mamba"), is_dotted_path("ML10:fold=1"), is_dotted_path("uniform")
        (True, False, False)
    """
    if not isinstance(name, str):
        return False
    module, separator, attribute = _split(name)
    parts = [*module.split("."), attribute]
    return bool(separator) and module not in _BENCHMARKS and all(part.isidentifier() for part in parts)


def resolve(path: str) -> Any:
    """Import a dotted path's module and return the named object; ValueError if there is no such module or name."""
    module_name, _, attribute = _split(path)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists, but one of its own imports is missing
        raise ValueError(f"{path!r}: there is no module {module_name!r}; is it installed or on PYTHONPATH?") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ValueError(f"{path!r}: {module_name} has no {attribute!r}.") from None


def check_trusted(source: str | Path, names: Iterable[object], trust: Collection[str]) -> None:
    """Raise ValueError for the first untrusted dotted path among ``names``, read from ``source``. Imports nothing."""
    for name in names:
        if is_dotted_path(name) and name not in trust:
            raise ValueError(
                f"{source} names code that is not of this package, {name}, and does not import it unless you trust "
                f"that code: pass trust=[{name!r}], on the command line trust=[{name}]."
            )


def _split(path: str) -> tuple[str, str, str]:
    return path.partition(":") if ":" in path else path.rpartition(".")
