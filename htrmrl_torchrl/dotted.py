"""Code of one's own, named by a dotted path: ``package.module:name``.

Window strategies, encoders and environments can be named so. The module is imported where the caller writes the path.
A path that stands in a file is imported only if the caller says so, see `check_trusted`.
"""

import importlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any


def is_dotted_path(name: object) -> bool:
    """Whether ``name`` has the shape of a dotted path (``package.module.name`` too); built-in names have none of it.

    Example:
        >>> is_dotted_path("my_lab.encoders:Mamba"), is_dotted_path("ML1:push-v3"), is_dotted_path("uniform")
        (True, False, False)
    """
    if not isinstance(name, str):
        return False
    module, separator, attribute = _split(name)
    parts = [*module.split("."), attribute]
    return bool(separator) and module not in ("ML1", "custom") and all(part.isidentifier() for part in parts)


def resolve(path: str) -> Any:
    """What a dotted path names; its module is imported.

    Raises:
        ValueError: if there is no such module, or nothing of that name in it.
    """
    module_name, _, attribute = _split(path)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, but something it imports is not: its own error says more
        raise ValueError(f"{path!r}: there is no module {module_name!r}; is it installed or on PYTHONPATH?") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ValueError(f"{path!r}: {module_name} has no {attribute!r}.") from None


def check_trusted(source: str | Path, names: Iterable[object], trust: Collection[str]) -> None:
    """Raise ValueError for the first dotted path among ``names``, read from a file ``source``, that is not trusted.

    Nothing is imported to find out.
    """
    for name in names:
        if is_dotted_path(name) and name not in trust:
            raise ValueError(
                f"{source} names code that is not of this package, {name}, and does not import it unless you trust "
                f"that code: pass trust=[{name!r}], on the command line trust=[{name}]."
            )


def _split(path: str) -> tuple[str, str, str]:
    return path.partition(":") if ":" in path else path.rpartition(".")
