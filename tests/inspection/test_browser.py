"""The page in a real browser, where there is one: no console errors, every picture is shown, nothing is fetched."""

import pytest
from matplotlib.figure import Figure

from htrmrl_torchrl.inspection.page import Picture, Section, Table, write_page
from tests.inspection.browser import BROWSERS, Browser, find_browser

PICTURES = "[...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.clientWidth > 0])"
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


def seen_by_browser(page, tmp_path, *, width=1200):
    """Pictures as (width, height, shown), whether nothing is cut off at the right, complaints, and what was fetched."""
    binary = find_browser()
    if binary is None:
        pytest.skip(f"No browser on PATH ({', '.join(BROWSERS)}); the parser's checks of the page have run.")
    browser = Browser(binary, tmp_path / "profile", width=width)
    try:
        browser.open(page.as_uri())
        pictures, fits = browser.evaluate(PICTURES), browser.evaluate(FITS)
    finally:
        browser.close()
    complaining = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    complaints = [name for name, _ in browser.events if name in complaining]
    requests = [said["request"]["url"] for name, said in browser.events if name == "Network.requestWillBeSent"]
    fetched = [address for address in requests if not address.startswith(("data:", page.as_uri()))]
    return pictures, fits, complaints, fetched


@pytest.fixture
def page(tmp_path):
    pictures = []
    for index in range(3):
        figure = Figure(figsize=(12 + index, 4))
        figure.subplots().plot([1, 2])
        figure.savefig(tmp_path / f"{index}.png", dpi=100)
        pictures.append(Picture(path=tmp_path / f"{index}.png", caption=f"<{index}>"))
    table = Table(head=["x", *map(str, range(30))], rows=[["wide", *map(float, range(30))]])
    sections = [Section(title="A", text="b", tables=[table], pictures=pictures), Section(title="C & d", text="<e>")]
    facts = [("command", "python recipes/look_inside.py " + "long=" * 60)]
    write_page(tmp_path / "index.html", title="Inside", facts=facts, sections=sections)
    return tmp_path / "index.html"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 600])
def test_all_pictures_are_shown_without_a_word_on_the_console(page, tmp_path, width):
    expected = [[1200, 400, True], [1300, 400, True], [1400, 400, True]]
    assert seen_by_browser(page, tmp_path, width=width) == (expected, True, [], [])


@pytest.mark.slow
def test_the_browser_would_tell(page, tmp_path):
    """Negative control: a broken picture, a fetched file, an error and a wide table are seen."""
    content = page.read_text().replace("data:image/png;base64,iVBOR", "data:image/png;base64,xxxxx", 1)
    wide = '<div style="width: 3000px">w</div>'
    page.write_text(content.replace("<nav", f'<img src="0.png"><script>nothing()</script>{wide}<nav'))
    pictures, fits, complaints, fetched = seen_by_browser(page, tmp_path)
    assert [picture[:2] for picture in pictures[:2]] == [[1200, 400], [0, 0]]
    assert not fits and "Runtime.exceptionThrown" in complaints and fetched == [(tmp_path / "0.png").as_uri()]
