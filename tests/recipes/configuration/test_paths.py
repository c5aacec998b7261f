"""Paths may hold whatever a file system allows, and `~` is the home folder in every recipe."""

import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from htrmrl_torchrl.evaluation import EvaluationReport
from htrmrl_torchrl.faults import UserError
from recipes import ablate, benchmark, evaluate, export, plot
from recipes.configuration.cells import plan
from recipes.configuration.compose import load_config
from recipes.configuration.paths import check_folder, path_override
from recipes.inside import play as look_inside
from tests.recipes.runs import TINY, here, train_here

ODD = [
    "a=b", "a b", " a", "it's", 'say "x"', "'a'", '"a"', "a,b", "[1]", "{a:1}", "(a)", "$x", "${x}", "\\${x}", "a\\",
    "a\\'b", "a\nb", "é☃", "\udcff", "~a", "???", "null", "3", "true", "range(1,3)", "*", "a[1]*", "%s", "#a", "a:b",
    "a;b", "a@b", "-a", "+a", "_a",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "toy"
    train_here(folder, "total_frames=192", *TINY)
    return folder


def out_of(override):
    return load_config("evaluate", [override], evaluate.check).out


@pytest.mark.parametrize("name", ODD)
def test_a_path_is_what_was_written(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = out_of(path_override("out", name))
    assert Path(own) == Path(name) and own in (name, f"./{name}")
    if "${" not in name:
        assert out_of(f"out={tmp_path}/{name}") == f"{tmp_path}/{name}"
    (tmp_path / name).mkdir()  # what is there is meant, whatever else its name could say
    assert out_of(f"out={tmp_path}/{name}") == f"{tmp_path}/{name}"


def test_what_is_not_there_may_follow_another_key_or_be_quoted():
    assert load_config("toy_ppo", ["run_dir=x_${seed}", "seed=7"]).run_dir == "x_7"
    assert out_of("out='a b'") == "a b" and out_of('out="a,b"') == "a,b"
    assert out_of("out=null") is None


@pytest.mark.parametrize("name", ["encoder.window=1/seed=1", "it's [1] ${x}, \\'y'\n☃\udcff"])
def test_recipes_read_and_write_there(name, trained, tmp_path, monkeypatch, capsys):
    run = tmp_path / name
    shutil.copytree(trained, run)
    out = tmp_path / f"out of {name.replace('/', ' ')}"
    out.mkdir()
    start = here(monkeypatch, capsys, evaluate, config_name="evaluate")
    _, error, code = start(f"checkpoint={run}", f"out={out}", "num_workers=0", "adaptation_episodes=1")
    assert code == 0, error
    (path,) = out.glob("*.json")
    report = EvaluationReport.load(path)
    assert shlex.split(report.command)[1:] == sys.argv  # it can be pasted into a shell
    start = here(monkeypatch, capsys, export, config_name="export")
    _, error, code = start(f"checkpoint={run}", f"out={out}/agent.torchrl")
    assert code == 0 and (out / "agent.torchrl").is_file(), error
    plot.main([str(run), "--label", name, "--title", "$x", "--out", str(out / "curve.png")])
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_pattern_is_read_where_nothing_of_that_name_is(trained, tmp_path, monkeypatch, capsys):
    start = here(monkeypatch, capsys, export, config_name="export")
    for name in ("run1", "run[12]"):
        shutil.copytree(trained, tmp_path / name)
    out, error, code = start(f"checkpoint={tmp_path}/run[12]", f"out={tmp_path}/a.torchrl")
    assert code == 0 and f"{tmp_path}/run[12]/checkpoints" in out, error
    shutil.rmtree(tmp_path / "run[12]")
    out, error, code = start(f"checkpoint={tmp_path}/run[12]", f"out={tmp_path}/a.torchrl")
    assert code == 0 and f"{tmp_path}/run1/checkpoints" in out, error


def test_home_is_home_in_every_recipe(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    checks = {
        "evaluate": evaluate,
        "export": export,
        "look_inside": look_inside,
        "benchmark": benchmark,
        "ablate": ablate,
    }
    for name, recipe in checks.items():
        assert load_config(name, ["out=~/x"], recipe.check).out == f"{tmp_path}/x"
    for name in ("evaluate", "export", "look_inside"):
        assert load_config(name, ["checkpoint=~/x*"], checks[name].check).checkpoint == f"{tmp_path}/x*"
    (tmp_path / "x.torchrl").touch()
    config = load_config("toy_ppo", ["run_dir=~/run_${seed}", "resume=~/x.torchrl"])
    assert (config.run_dir, config.resume) == (f"{tmp_path}/run_1", f"{tmp_path}/x.torchrl")
    args = plot.parse(["~/a", "--compare", "~", "~/b", "--out", "~/c.png"])
    assert (args.run_dirs, args.out) == ([tmp_path / "a"], tmp_path / "c.png")
    assert plot.groups_of(args)[1] == ("~", [tmp_path / "b"])
    shutil.copytree(trained, tmp_path / "run1")
    start = here(monkeypatch, capsys, export, config_name="export")
    assert start("checkpoint=~/run*", "out=~/agent.torchrl")[2] == 0
    assert (tmp_path / "agent.torchrl").is_file()


def test_cells_go_where_the_sweep_was_told_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a b='c'", "${x},\\", "~a"):
        _, (cell,) = plan("toy_ppo", ["seed=1", "total_frames=100_000"], tmp_path / name)
        assert Path(load_config("toy_ppo", cell.overrides).run_dir) == tmp_path / name / "all" / "seed=1"


# ------------------------------------------------------------------------------------------------------- writing


def test_trying_to_write_leaves_nothing_and_makes_nothing(tmp_path):
    check_folder("out", tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="File name too long"):
        check_folder("out", tmp_path / "a" / ("b" * 300))
    assert list(tmp_path.iterdir()) == []


def said_to_nobody(function):
    """What is refused to a user without rights; root becomes one, in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            function()
        except UserError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as said:
        return said.read()


def test_folders_of_somebody_else(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o000)
    assert "cannot be looked at: Permission denied" in said_to_nobody(
        lambda: check_folder("out", tmp_path / "closed" / "x" / "y")
    )
    assert "nothing can be written there (Permission denied)" in said_to_nobody(lambda: check_folder("out", Path("/x")))


@pytest.mark.parametrize("recipe", ["evaluate", "look_inside"])
def test_the_table_is_printed_though_nothing_can_be_written(recipe, trained, tmp_path, monkeypatch, capsys):
    """Where the first file goes is a folder by then."""
    stem = "toy_test_strict_4goals_1+1episodes_seed0_000000000192"
    module, first, small = {
        "evaluate": (evaluate, f"{stem}.json", ["adaptation_episodes=1"]),
        "look_inside": (look_inside, "adaptation.png", ["trials_per_goal=1", "looks=2"]),
    }[recipe]
    run = shutil.copytree(trained, tmp_path / "run")
    folder = run / {"evaluate": "evaluations", "look_inside": "inspection"}[recipe]
    (folder / first).mkdir(parents=True)
    start = here(monkeypatch, capsys, module, config_name=recipe)
    out, error, code = start(f"checkpoint={run}", "num_workers=0", *small)
    assert code == 2 and "success" in out and "Traceback" not in error
    assert "could not be written: Is a directory" in error.splitlines()[-1]
    assert not list(folder.rglob(".*"))  # no half of a file either


def test_a_sweep_shows_its_table_though_nothing_can_be_written(tmp_path, monkeypatch, capsys):
    from tests.recipes.test_ablate import made_up

    made = made_up(tmp_path, "1", "recent", 1, 0.25, seconds=10, frames=1536)  # one batch
    cell = tmp_path / "out" / "all" / "seed=1"
    shutil.copytree(made.run_dir, cell)
    (tmp_path / "out" / "table.csv").mkdir()
    monkeypatch.setattr(sys, "argv", ["ablate.py", f"out={tmp_path}/out", "seed=1", "total_frames=1000", *TINY])
    with pytest.raises(SystemExit) as ended:
        ablate.main()
    out, error = capsys.readouterr()
    assert ended.value.code == 2 and "0.250" in out
    assert error == f"error: table and figures in {tmp_path}/out could not be written: Is a directory\n"
