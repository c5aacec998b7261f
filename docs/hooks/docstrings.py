"""Our docstrings as mkdocstrings reads them: ``Example:`` is a section of doctests, Sphinx roles are plain code."""

import re

from griffe import Extension, Object

ROLE = re.compile(r":(?:class|meth|func|mod|attr):`~?([^`]+)`")


class PlainDocstrings(Extension):
    """Changes docstrings while they are collected."""

    def on_instance(self, *, obj: Object, **_: object) -> None:
        """Of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = ROLE.sub(r"`\1`", text)
