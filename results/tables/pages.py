"""Fills the tables of README.md and docs/results/.

A page holds a table between ``<!-- table: NAME -->`` and ``<!-- end -->``. NAME is a function of `ml10`, `others` or
`notebook`; its docstring says what it shows. tests/results/test_tables.py fails if a page is not what this would write.
"""

import re
from pathlib import Path

from results.tables import ml10, notebook, others  # noqa: F401 (they register their tables)
from results.tables.cells import TABLES

ROOT = Path(__file__).resolve().parents[2]
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """The pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]


def filled(text: str, results: Path) -> str:
    """``text`` with every marked table made anew. Raises ValueError for an unknown name or a marker without its end."""

    def made(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise ValueError(f"There is no table {match[2]!r}; choose one of {', '.join(TABLES)}.")
        return f"{match[1]}{TABLES[match[2]](results)}\n{match[3]}"

    filled_text, count = MARKED.subn(made, text)
    if not count == text.count("<!-- table:") == text.count("<!-- end -->"):
        raise ValueError("Each <!-- table: NAME --> needs an <!-- end --> of its own, and each end its table.")
    return filled_text


def main() -> None:
    """Writes every table of every page anew."""
    for page in pages():
        page.write_text(filled(page.read_text(encoding="utf-8"), ROOT / "results"), encoding="utf-8")
