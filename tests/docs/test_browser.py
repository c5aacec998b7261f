"""The site in a real browser, where there is one: no complaint, every picture, the search, and a narrow screen."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.docs.test_site import site  # noqa: F401, a fixture
from tests.inspection.browser import BROWSERS, Browser, find_browser

PICTURES = (
    "Promise.all([...document.images].map(i => i.decode().then(() => '', () => i.src))).then(all => all.filter(x => x))"
)
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
SEARCH = """
new Promise(resolve => {
    const query = document.querySelector('[data-md-component=search-query]')
    const look = () => {
        query.dispatchEvent(new Event('keyup'))
        const found = [...document.querySelectorAll('.md-search-result__link')].map(link => link.getAttribute('href'))
        found.length ? resolve(found) : setTimeout(look, 200)
    }
    query.focus()
    query.value = '%s'
    look()
})
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def address(site):  # noqa: F811
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def browser(tmp_path):
    if (binary := find_browser()) is None:
        pytest.skip(f"No browser on PATH ({', '.join(BROWSERS)}); the strict build has run.")
    browser = Browser(binary, tmp_path / "profile", width=1280)
    yield browser
    browser.close()


def visit(browser, page, *, width):
    """What is wrong with a page: complaints, requests to elsewhere, missing pictures, cut off at the right."""
    browser.events.clear()
    browser.open(page)
    browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    wrong = [f"no picture {source}" for source in browser.evaluate(PICTURES)]
    if not browser.evaluate(FITS):
        wrong.append(f"wider than {width} pixels")
    for name, said in browser.events:
        if name in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            wrong.append(f"{name}: {said}")
        if name == "Network.requestWillBeSent":
            asked = said["request"]["url"]
            wrong += [f"fetches {asked}"] * (not asked.startswith(("http://127.0.0.1:", "data:", "blob:")))
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_every_page_is_shown_without_a_complaint(site, address, browser, width):  # noqa: F811
    pages = sorted(path.parent.relative_to(site).as_posix() for path in site.rglob("index.html"))
    assert len(pages) > 30
    wrong = {page: found for page in pages if (found := visit(browser, f"{address}/{page}/", width=width))}
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "page"), [("window strategy", "concepts/memory"), ("worker_timeout", "reference/configuration")]
)
def test_the_search_finds(address, browser, words, page):
    browser.open(f"{address}/")
    assert any(page in link for link in browser.evaluate(SEARCH % words))


@pytest.mark.slow
def test_the_browser_would_tell(site, address, browser):  # noqa: F811
    """Negative control: a missing picture, a request to elsewhere, an error and a wide table are seen."""
    pictures = '<img src="gone.png"><img src="http://127.0.0.2:1/x.png">'
    bad = f'{pictures}<script>nothing()</script><div style="width: 3000px">w</div>'
    (site / "bad").mkdir()
    (site / "bad/index.html").write_text(f"<!doctype html><p>{bad}")
    found = "\n".join(visit(browser, f"{address}/bad/", width=400))
    (site / "bad/index.html").unlink()
    for word in ("no picture", "127.0.0.2", "exceptionThrown", "wider than 400"):
        assert word in found
