"""The page in a real browser, where there is one: no console errors, every picture is shown, nothing is fetched."""

import re
import shutil
import subprocess

import pytest
from matplotlib.figure import Figure

from htrmrl_torchrl.inspection.page import Picture, Section, Table, write_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell", "headless_shell")
# Says what the browser made of the page, in its title; not in the page itself, which has no scripts.
ASK = """<script>addEventListener("load", () => {
  const shown = [...document.images].map(i => `${i.naturalWidth}x${i.naturalHeight}:${i.clientWidth > 0}`);
  const wide = document.documentElement.scrollWidth <= document.documentElement.clientWidth;
  document.title = `asked ${shown.join(" ")} fits ${wide} fetched ${performance.getEntriesByType("resource")
    .filter(r => !r.name.startsWith("data:")).length}`; });</script></body>"""


def answers(page, tmp_path, *, width=1200):
    """The title that the page gives itself, and what the browser has to say."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"No browser on PATH ({', '.join(BROWSERS)}); the parser's checks of the page have run.")
    asking = tmp_path / "asking.html"
    asking.write_text(page.read_text().replace("</body>", ASK))
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
         "--virtual-time-budget=5000", f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}",
         asking.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    (title,) = re.findall("<title>(.*?)</title>", done.stdout)
    return title, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


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
    facts = [("command", "python recipes/inspect.py " + "long=" * 60)]
    write_page(tmp_path / "index.html", title="Inside", facts=facts, sections=sections)
    return tmp_path / "index.html"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 500])
def test_all_pictures_are_shown_without_a_word_on_the_console(page, tmp_path, width):
    title, console = answers(page, tmp_path, width=width)
    assert title == "asked 1200x400:true 1300x400:true 1400x400:true fits true fetched 0"
    assert console == []


@pytest.mark.slow
def test_the_browser_would_tell(page, tmp_path):
    """Negative control: a broken picture, a fetched file and an error are seen."""
    broken = page.read_text().replace("data:image/png;base64,iVBOR", "data:image/png;base64,xxxxx", 1)
    page.write_text(broken.replace("<nav", '<img src="0.png"><script>nothing()</script><nav'))
    title, console = answers(page, tmp_path)
    assert title == "asked 1200x400:true 0x0:true 1300x400:true 1400x400:true fits false fetched 1"
    assert len(console) == 1 and "nothing is not defined" in console[0]
