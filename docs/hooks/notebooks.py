"""Notebooks as pages: each ``docs/notebooks/*.ipynb`` becomes Markdown with its committed outputs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each notebook."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        note = f'!!! note "This page is a notebook"\n    Run it yourself: `docs/notebooks/{path.name}` in a clone.\n'
        title, *cells = (part for cell in notebook["cells"] for part in _parts(cell))
        content = "\n\n".join([title, note, *cells])
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=content))
    return files


def _parts(cell: dict[str, Any]) -> Iterator[str]:
    """A cell's text or code, then its outputs."""
    source = "".join(cell["source"])
    yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        kind = next((kind for kind in ("image/gif", "image/png") if kind in data), None)
        if kind is not None:
            encoded = "".join(data[kind]).replace("\n", "")
            yield f'<img alt="output" src="data:{kind};base64,{encoded}">'
        elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
            yield f"```text\n{text}\n```"
