"""Packages that only some uses need, the extras of ``pip install 'htrmrl_torchrl[...]'``."""

from importlib.util import find_spec

from htrmrl_torchrl.faults import UserError


class MissingExtraError(UserError, ImportError):
    """A package of an extra is not installed; the message gives the command that installs it."""


def require(extra: str, *modules: str) -> None:
    """Raise `MissingExtraError` for the first of ``modules`` that is not installed, before it is imported.

    Args:
        extra: name of the extra that brings them: ``"cli"``, ``"plots"``, ``"video"``, ``"hub"``, ``"wandb"``,
            ``"mlflow"`` or ``"trackio"``.
        modules: names as in an import statement.

    Example:
        >>> require("plots", "matplotlib")
        >>> require("plots", "no_such_package")
        Traceback (most recent call last):
        htrmrl_torchrl.extras.MissingExtraError: no_such_package is not installed: pip install 'htrmrl_torchrl[plots]'
    """
    for module in modules:
        if find_spec(module) is None:
            raise MissingExtraError(f"{module} is not installed: pip install 'htrmrl_torchrl[{extra}]'")
