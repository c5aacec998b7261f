"""One HTML page with everything in it: it opens from disk, without server, scripts or other files."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from htrmrl_torchrl.checkpoints.files import write_whole

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1080px; padding: 1.5rem; background: #fff; color: #1b1b1b;
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; }
p { max-width: 72ch; margin: .4rem 0; } .small, figcaption { color: #555; font-size: .9rem; }
nav a { margin-right: 1rem; } figure { margin: 1rem 0; } figcaption { max-width: 80ch; }
img { max-width: 100%; height: auto; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .facts td { text-align: left; }
.facts td + td { white-space: normal; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under a head; numbers are written with two decimals."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG file and what it shows; the text stands in where pictures cannot be seen."""

    path: Path
    caption: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, what to see there, numbers and pictures."""

    title: str
    text: str
    tables: Sequence[Table] = field(default_factory=tuple)
    pictures: Sequence[Picture] = field(default_factory=tuple)


def write_page(path: Path, *, title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> None:
    """Writes the page; ``facts`` say what was inspected and how, as (name, value) pairs."""
    links = "".join(f'<a href="#{_anchor(section.title)}">{html.escape(section.title)}</a>' for section in sections)
    known = "".join(f"<tr><td>{html.escape(n)}</td><td><code>{html.escape(v)}</code></td></tr>" for n, v in facts)
    body = "\n".join(_section(section) for section in sections)
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # A browser asks for an icon where a page names none.
        f'<link rel="icon" href="data:,">\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n'
        f'<nav class="small">{links}</nav>\n<table class="facts">{known}</table>\n'
        f"{body}\n</body>\n</html>\n"
    )
    # A path may hold bytes that are no characters; a page shows them as \udcff.
    write_whole(path, page.encode("utf-8", "backslashreplace"))


def _section(section: Section) -> str:
    parts = [
        f'<h2 id="{_anchor(section.title)}">{html.escape(section.title)}</h2>',
        f"<p>{html.escape(section.text)}</p>",
    ]
    return "\n".join([*parts, *map(_table, section.tables), *map(_picture, section.pictures)])


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in table.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(value: str | int | float) -> str:
    return f"{value:.2f}" if isinstance(value, float) else html.escape(str(value))


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    caption = html.escape(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption} ({html.escape(picture.path.name)}, also as PDF)</figcaption></figure>"
    )


def _anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())
