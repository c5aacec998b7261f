"""`recipes/look_inside.py` as a user runs it: figures and one page."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from PIL import Image

from recipes.configuration.compose import run_recipe
from recipes.inside import play as look_inside
from tests.inspection.pages import Page, check_self_contained
from tests.inspection.test_browser import seen_by_browser
from tests.recipes.runs import here, leaves_a_mark, named_otherwise, train_here
from tests.recipes.test_ppo import ROOT, TINY

SCRIPT = ROOT / "recipes" / "look_inside.py"
SMALL = ["num_workers=0", "num_envs=8", "trials_per_goal=2", "looks=3"]
ATTENDING = {"heads", "maps_trained", "maps_untrained"}
REMEMBERING = ATTENDING | {"trials", "around_success", "retrieval"}
ALWAYS = {"adaptation", "embeddings_train", "embeddings_test", "separation_train", "separation_test"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with one run, of 8 lanes * 4 episodes * 6 steps."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    train_here(folder, "total_frames=192", *TINY)
    return folder


@pytest.fixture(scope="module")
def inspected(trained, tmp_path_factory):
    """What is printed, and the folder that is left."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        patch.chdir(elsewhere)
        patch.setattr(sys, "argv", [str(SCRIPT), f"checkpoint={trained}", *SMALL])
        run_recipe(look_inside.run, config_name="look_inside", check=look_inside.check)
    assert list(elsewhere.iterdir()) == []
    return said.getvalue(), trained / "inspection"


@pytest.fixture
def recipe(monkeypatch, capsys):
    return here(monkeypatch, capsys, look_inside, config_name="look_inside")


def check_folder(folder, figures):
    """All figures as PNG and PDF, all of them on the page, which is whole in itself."""
    names = {path.name for path in folder.iterdir()}
    assert names == {"index.html", "inspection.json"} | {f"{f}.{kind}" for f in figures for kind in ("png", "pdf")}
    page = Page(folder / "index.html")
    check_self_contained(page)
    sizes = sorted(Image.open(folder / f"{name}.png").size for name in figures)
    assert sorted(picture.size for picture in page.pictures) == sizes
    assert all(min(size) > 200 for size in sizes)
    for name in figures:
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert f"({name}.png, also as PDF)" in page.text
    return page, json.loads((folder / "inspection.json").read_text())


def test_a_folder_with_figures_and_one_page(inspected, trained):
    out, folder = inspected
    assert f"open {folder / 'index.html'} in a browser" in out
    page, numbers = check_folder(folder, ALWAYS | REMEMBERING)
    (checkpoint,) = (trained / "checkpoints").glob("best-*")
    assert numbers["checkpoint"] == str(checkpoint) and numbers["frames"] == 192
    assert numbers["trials"] == {"train": 8, "test": 8} and numbers["episodes"] == 4 and numbers["horizon"] == 6
    assert str(checkpoint) in page.text and f"checkpoint={trained}" in page.text
    for split in ("train", "test"):
        assert set(numbers["success_by_episode"][split]) == {"trained", "untrained"}
        first, *_ = numbers["separation"][split]["first decision"]["trained"]
        assert first["purity"] == pytest.approx(first["chance"]) == pytest.approx(1 / 7)  # nothing is known there yet
        assert len(numbers["separation"][split]["last decision"]["untrained"]) == 4
        share = numbers["attention"][split]["trained"]["the same, if all windows were looked at alike"]
        assert share == pytest.approx(3 / 4)  # three slots are filled as soon as there is an episode
    assert "trained with 'uniform_last'" in page.text


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers(trained, recipe, tmp_path, inspected):
    _, error, code = recipe(f"checkpoint={trained}", f"out={tmp_path}/again", *SMALL)
    assert code == 0, error
    before = json.loads((inspected[1] / "inspection.json").read_text())
    again = json.loads((tmp_path / "again" / "inspection.json").read_text())
    assert {**before, "command": ""} == {**again, "command": ""}


@pytest.mark.slow
@pytest.mark.parametrize("encoder,figures", [("trmrl", ALWAYS | ATTENDING), ("rl2", ALWAYS), ("mlp", ALWAYS)])
def test_baselines_show_what_they_have(encoder, figures, recipe, tmp_path):
    train_here(tmp_path / "run", "total_frames=192", *TINY, f"encoder={encoder}")
    _, error, code = recipe(f"checkpoint={tmp_path}/run", f"out={tmp_path}/out", *SMALL)
    assert code == 0, error
    _, numbers = check_folder(tmp_path / "out", figures)
    assert bool(numbers["attention"]["test"]["trained"]) == (encoder == "trmrl")


@pytest.mark.slow
def test_training_goals_alone_and_trials_of_one_episode(trained, recipe, tmp_path):
    _, error, code = recipe(f"checkpoint={trained}", f"out={tmp_path}/out", *SMALL, "split=train", "episodes=1")
    assert code == 0, error
    expected = {name for name in ALWAYS | REMEMBERING if "test" not in name} - {"retrieval"}
    check_folder(tmp_path / "out", expected)


WRONG = {
    "no checkpoint": ([], "checkpoint is missing"),
    "nothing there": (["checkpoint={tmp}/nowhere"], "nowhere' but nothing is there"),
    "several": (["checkpoint={tmp}/t*"], "which are 2 checkpoints: give one of them"),
    "foreign": (["checkpoint={tmp}/foreign.torchrl"], "foreign.torchrl is not a checkpoint"),
    "unknown split": (["checkpoint={run}", "split=tset"], "split is 'tset'"),
    "unknown benchmark": (["checkpoint={run}", "benchmark=ML11"], "'ML11'"),
    "a factory": (["checkpoint={run}", "benchmark=os:getcwd"], "name a Benchmark of your own"),
    "goals beyond": (["checkpoint={run}", "goals_per_task=5"], "goals_per_task is 5 but must be at most 4 in toy"),
    "other sizes": (
        ["checkpoint={run}", "benchmark=ML1:reach-v3", "num_workers=0", "goals_per_task=1", "trials_per_goal=1"],
        "sizes (3, 2); this benchmark has (39, 4)",
    ),
    "no looks": (["checkpoint={run}", "looks=0"], "looks is 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_ends_in_one_sentence(case, trained, recipe, tmp_path):
    (tmp_path / "foreign.torchrl").write_text("hello")
    (checkpoint,) = (trained / "checkpoints").glob("best-*")
    for name in ("t1", "t2"):
        shutil.copy(checkpoint, tmp_path / name)
    arguments, said = WRONG[case]
    out, error, code = recipe(*(argument.format(tmp=tmp_path, run=trained) for argument in arguments))
    assert code == 2 and out == ""
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error, error
    assert {path.name for path in tmp_path.iterdir()} == {"foreign.torchrl", "t1", "t2"}


def test_what_a_checkpoint_says_is_not_imported_or_resolved(trained, recipe, tmp_path, monkeypatch):
    """A name that is a module's; the negative control is whoever asks for it himself."""
    (checkpoint,) = (trained / "checkpoints").glob("best-*")
    name, mark = leaves_a_mark(tmp_path, monkeypatch)
    evil = named_otherwise(checkpoint, tmp_path / "evil.torchrl", name)
    out, error, code = recipe(f"checkpoint={evil}")
    assert (out, code) == ("", 2) and error.count("\n") == 1, error
    assert f"names code that is not of this package, {name}," in error and f"trust=[{name}]" in error
    assert "benchmark=NAME" in error
    asks = named_otherwise(checkpoint, tmp_path / "asks.torchrl", "${oc.env:HOME}")
    out, error, code = recipe(f"checkpoint={asks}")
    assert (out, code) == ("", 2) and "Unknown environment '${oc.env:HOME}'" in error and error.count("\n") == 1
    assert not mark.exists()


def test_no_recipe_hides_a_module_of_pythons_own():
    """Python puts the folder of a script first on its path."""
    names = {path.stem for path in (ROOT / "recipes").iterdir()}
    assert "look_inside" in names and not names & sys.stdlib_module_names


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("[!_]*.py")), ids=lambda path: path.name)
def test_every_recipe_still_starts_as_a_script(path: Path, tmp_path: Path):
    environment = {**os.environ, "PYTHONSAFEPATH": ""}
    done = subprocess.run(
        [sys.executable, str(path), "--help"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert ("usage:" in done.stdout) == (path.name != "ppo.py")


@pytest.mark.slow
def test_the_page_opens_in_a_browser(inspected, tmp_path):
    _, folder = inspected
    pictures, fits, complaints, fetched = seen_by_browser(folder / "index.html", tmp_path)
    assert len(pictures) == len(ALWAYS | REMEMBERING) and all(w > 200 and h > 200 and shown for w, h, shown in pictures)
    assert fits and not complaints and not fetched
