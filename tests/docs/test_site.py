"""The site builds without a warning, and a warning fails the build."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.docs.pages import ROOT


def build(source, target):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        source / "mkdocs.yml",
        "-d",
        target,
    ]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=source, env=quiet)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    done = build(ROOT, target)
    assert done.returncode == 0, done.stderr
    return target


def test_generated_pages_show_every_command_and_key(site):
    keys = (site / "reference/configuration/index.html").read_text()
    for text in ("env.worker_timeout", "Mean KL of an update", "from 0.1 to 1_000_000 seconds", "encoder=rl2"):
        assert text in keys
    commands = (site / "reference/commands/index.html").read_text()
    for text in ("memory_gain", "look-inside", "--by-episode", "a few minutes for ML10"):
        assert text in commands


def test_docstrings_are_on_the_pages_of_the_api(site):
    assert "Success rate of an agent on held-out goals" in (site / "reference/api/evaluation/index.html").read_text()
    assert "htrmrl_torchrl.make_env" in (site / "reference/api/environments/index.html").read_text()


def test_pages_fetch_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert 'src="http' not in text and 'rel="stylesheet" href="http' not in text and "fonts.g" not in text, page


@pytest.fixture
def built(tmp_path):
    """Builds a site of one page below another folder; returns how it went, and the page."""
    for name in ("htrmrl_torchrl", "recipes", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs/hooks", tmp_path / "docs/hooks")
    config = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[0]
    (tmp_path / "mkdocs.yml").write_text(config.replace("  - docs/hooks/reference.py\n", ""))
    (tmp_path / "docs/guides").mkdir()
    (tmp_path / "docs/index.md").write_text("# Home\n")

    def call(text):
        (tmp_path / "docs/guides/page.md").write_text(f"# Page\n\n{text}\n")
        done = build(tmp_path, tmp_path / "site")
        page = tmp_path / "site/guides/page/index.html"
        return done, page.read_text() if page.exists() else ""

    return call


def test_files_outside_of_docs_are_shown_or_named(built, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/curve.png").write_bytes(b"a picture")
    lines = ["![A curve](../../results/curve.png)", "[cli.py](../../htrmrl_torchrl/cli.py)", "[Home](../index.md)"]
    done, page = built("\n".join(lines))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/evidence/results/curve.png").read_bytes() == b"a picture"
    assert 'src="../../evidence/results/curve.png"' in page
    assert "<code>cli.py</code>" in page and 'href="../.."' in page


@pytest.mark.parametrize(
    "line", ["", "[gone](gone.md)", "[gone](../../gone.py)", "::: htrmrl_torchrl.gone", "[a](../index.md#gone)"]
)
def test_what_leads_nowhere_fails_the_build(line, built):
    done, _ = built(line)
    assert done.returncode == bool(line), done.stderr
