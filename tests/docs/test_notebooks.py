"""The notebooks run from top to bottom, and what is committed of their outputs is small."""

import signal

import nbformat
import pytest
from nbclient import NotebookClient

from htrmrl_torchrl.envs.opengl import RenderingError, choose_backend
from tests.docs.pages import ROOT
from tests.recipes.runs import python_path

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
NEEDS_OPENGL = {"load_and_play"}


def kinds(cell):
    """What a cell shows: pictures, printed text."""
    shown = (output for output in cell.outputs if output.get("name") != "stderr")
    return [output.output_type if "data" not in output else sorted(output.data) for output in shown]


def cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_committed_and_small(path):
    assert any(kinds(cell) for cell in cells(path))
    assert path.stat().st_size < 300_000


@pytest.fixture
def interrupts_as_before():
    """nbclient puts Python's default handler in place of whatever was there, for instance in a shell's background."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("interrupts_as_before")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_what_is_committed(path, monkeypatch):
    if path.stem in NEEDS_OPENGL:
        try:
            choose_backend()
        except RenderingError as error:
            pytest.skip(str(error))
    monkeypatch.setenv("PYTHONPATH", python_path(ROOT))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    played = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [kinds(cell) for cell in played] == [kinds(cell) for cell in cells(path)]
