"""What the pages hold: the README and everything under ``docs/``, with their code blocks and commands."""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACEHOLDER = re.compile(r"\.\.\.|\b(NAME|FOLDER|PATH)\b")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(language, code, what the page says is printed) of each block; the last is a ``text`` block right below."""
    content = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(content))
    printed = {
        one.start(): two[2]
        for one, two in pairwise(found)
        if two[1] == "text" and not content[one.end() : two.start()].strip()
    }
    return [(block[1], block[2], printed.get(block.start(), "")) for block in found if block[1] != "text"]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each shell command, in blocks and in running text; one with a placeholder is left out."""
    lines = [code.replace("\\\n", " ") for language, code, _ in blocks(page) if language == "bash"]
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    lines += re.findall(r"`((?:htrmrl|python|make) [^`\n]+)`", text)
    for line in "\n".join(lines).splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):  # variables of the environment
            del words[0]
        if words and not any(PLACEHOLDER.search(word) for word in words):
            yield words
