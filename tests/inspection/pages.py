"""What a browser would make of a page, as far as a parser can tell."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements in order, pictures decoded; raises where tags do not close."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.pictures: list[Image.Image] = []
        self.captions: list[str] = []
        self.anchors: set[str] = set()
        self.tags: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        known = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in known:
            self.anchors.add(known["id"])
        self.links += [value for name, value in attributes if name in ("href", "src", "srcset", "action", "data")]
        if tag == "img":
            head, data = known["src"].split(",", 1)
            assert head == "data:image/png;base64" and known["alt"]
            picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            picture.load()
            self.pictures.append(picture)
            self.captions.append(known["alt"])

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open}"
        self.open.pop()

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


def check_self_contained(page: Page) -> None:
    """Nothing is fetched from anywhere, and links within the page lead somewhere."""
    inner = [link[1:] for link in page.links if link.startswith("#")]
    assert set(inner) <= page.anchors
    assert all(link.startswith(("#", "data:")) for link in page.links), page.links
    assert "script" not in page.tags
