"""The README is short, its links lead somewhere, and its examples are those of the documentation."""

import re

import pytest

from tests.docs.pages import ROOT, blocks

README = ROOT / "README.md"


def test_it_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_its_examples_are_on_pages_that_tests_run():
    shown = {code for page in (ROOT / "docs/tutorials").glob("*.md") for _, code, _ in blocks(page)}
    own = [code for language, code, _ in blocks(README) if language == "python"]
    assert len(own) == 2 and {*own} <= shown


def test_embedding_is_short_and_needs_no_recipe():
    (code,) = (code for _, code, _ in blocks(README) if "Pendulum" in code)
    assert len(code.splitlines()) <= 25
    assert "recipes" not in code


def anchors(page):
    """As code hosts make them of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


PAGES = ["README.md", "results/README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/results/*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Links of the other pages are checked while the site is built."""
    path = ROOT / page
    links = [link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))]
    links = [(path.parent / target if target else path, anchor) for target, _, anchor in links if "://" not in target]
    assert not [str(target) for target, _ in links if not target.exists()]
    assert not [(str(target), anchor) for target, anchor in links if anchor and anchor not in anchors(target)]


@pytest.mark.parametrize("placeholder", ["EMBED", "CITE", "RESULTS_TABLE", "TODO"])
def test_nothing_is_left_to_fill_in(placeholder):
    assert placeholder not in re.findall(r"\b[A-Z_]+\b", README.read_text(encoding="utf-8"))
