"""Links of a page to files outside of ``docs/``: on a code host they work as they are, the site needs them changed.

A picture is copied into the site. Any other file is not part of it: of its link only the text stays. A target that does
not exist is a warning, which fails a strict build.
"""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((\.\./[^)\s#]*)(#[^)\s]*)?\)")
PATH = re.compile(r"[\w/-]+(/|\.\w+)")
PICTURES = {".png", ".gif", ".svg", ".jpg"}
SERVED = "evidence"  # folder of the site that holds pictures from outside of docs/
log = logging.getLogger("mkdocs.hooks.links")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pictures that pages show from outside of ``docs/``."""
    wanted = {path for file in files.documentation_pages() for path in _outside(file) if _is_picture(path)}
    for path in sorted(wanted):
        files.append(File.generated(config, f"{SERVED}/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links to pictures to their copies, and drops links to other files outside of ``docs/``."""
    folder = PurePosixPath(page.file.src_uri).parent

    def changed(link: re.Match[str]) -> str:
        path = _resolve(page.file, link[3])
        if path is None:
            return link[0]
        if not (ROOT / path).exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, path)
        if not _is_picture(path):
            return f"`{link[2]}`" if PATH.fullmatch(link[2]) else link[2]
        return f"{link[1]}[{link[2]}]({os.path.relpath(f'{SERVED}/{path}', folder)})"

    return LINK.sub(changed, markdown)


def _outside(file: File) -> Iterator[str]:
    """Targets of a page's links that lie outside of ``docs/``, relative to the repository."""
    paths = (_resolve(file, link[3]) for link in LINK.finditer(file.content_string))
    return (path for path in paths if path is not None)


def _resolve(file: File, link: str) -> str | None:
    """The path of a link's target relative to the repository, or None for one in ``docs/``."""
    path = os.path.normpath(PurePosixPath("docs", file.src_uri).parent / link)
    return None if path.startswith("docs/") else path


def _is_picture(path: str) -> bool:
    return PurePosixPath(path).suffix in PICTURES
