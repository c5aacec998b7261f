"""The page is well-formed, whole in itself, and says what it was given."""

import matplotlib.figure
import pytest

from htrmrl_torchrl.inspection.page import Picture, Section, Table, write_page
from tests.inspection.pages import Page, check_self_contained


@pytest.fixture
def picture(tmp_path):
    figure = matplotlib.figure.Figure(figsize=(2, 1))
    figure.savefig(tmp_path / "some.png", dpi=50)
    return Picture(path=tmp_path / "some.png", caption='a < b & "c"')


def test_a_page_is_well_formed_and_whole_in_itself(tmp_path, picture):
    sections = [
        Section(
            title="One & two",
            text="<script>alert(1)</script>",
            tables=[Table(head=["name", "<x>"], rows=[["y & z", 0.123], ["n", 3]])],
            pictures=[picture, picture],
        ),
        Section(title="Three", text="nothing to see"),
    ]
    write_page(tmp_path / "index.html", title="In <side>", facts=[("command", "a 'b' \"c\" <d>")], sections=sections)
    page = Page(tmp_path / "index.html")
    check_self_contained(page)
    assert [one.size for one in page.pictures] == [(100, 50)] * 2 and page.captions == [picture.caption] * 2
    for said in (
        "In <side>",
        "One & two",
        "<script>alert(1)</script>",
        "<x>",
        "y & z",
        "0.12",
        "a 'b' \"c\" <d>",
        "some.png",
    ):
        assert said in page.text
    assert len([link for link in page.links if link.startswith("#")]) == 2


@pytest.mark.parametrize(
    "html,message",
    [
        ("<p>open", "not closed"),
        ("<p></b></p>", "</b>"),
        ('<img alt="x" src="data:image/png;base64,AAAA">', "cannot identify"),
    ],
)
def test_the_parser_sees_what_is_broken(tmp_path, html, message):
    (tmp_path / "broken.html").write_text(html)
    with pytest.raises(Exception, match=message):
        Page(tmp_path / "broken.html")


@pytest.mark.parametrize(
    "html", ['<a href="https://example.org">x</a>', '<a href="#nowhere">x</a>', "<script></script>"]
)
def test_the_check_sees_what_is_not_in_the_page(tmp_path, html):
    (tmp_path / "linked.html").write_text(html)
    with pytest.raises(AssertionError):
        check_self_contained(Page(tmp_path / "linked.html"))
