"""The command ``htrmrl``: in a clone, and installed from a wheel in an empty folder."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from htrmrl_torchrl import cli
from htrmrl_torchrl.runs import console
from htrmrl_torchrl.runs.signals import command_to_continue
from tests.recipes.runs import TINY
from tests.wheels import build_wheel, install, plain_environment

ROOT = Path(__file__).parents[1]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs the command in this process and an empty folder; returns what it printed, and its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(console, "program", [])

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["htrmrl", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        return (*capsys.readouterr(), code)

    return run


def test_lists_every_training_recipe(command):
    out, _, code = command("ls")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()} == {
        path.stem.removesuffix("_ppo") for path in (ROOT / "recipes").glob("*_ppo.py")
    }


@pytest.mark.parametrize("tool", cli.TOOLS)
def test_every_tool_has_help_under_its_own_name(tool, command):
    out, _, code = command(tool, "--help")
    assert code == 0
    assert out.startswith("usage: plot.py" if tool == "plot" else f"usage: htrmrl {tool} [--help]")


def test_the_help_names_every_command(command):
    out, _, code = command()
    assert code == 0
    for name in ("ls", "cp", "run", *cli.TOOLS):
        assert f"\n    {name} " in out or f"\n    {name}\n" in out


def test_a_copy_is_run_in_a_folder_of_its_own(command, tmp_path):
    out, _, code = command("cp", "toy", "mine.yaml")
    assert code == 0 and out == "mine.yaml: edit it, then htrmrl run mine.yaml\n"
    assert "run_dir: runs/mine_seed${seed}\n" in (tmp_path / "mine.yaml").read_text()
    out, error, code = command("run", "mine.yaml", "seed=3", "--cfg")
    assert code == 0 and "run_dir: runs/mine_seed3\n" in out, error
    shipped, _, _ = command("run", "toy", "seed=3", "--cfg")
    assert out.replace("runs/mine", "runs/toy_ppo") == shipped


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["cp", "toy", "mine.yml"],
            "error: the target is 'mine.yml' but must end with .yaml, for instance my_",
        ),
        (["cp", "toy", "there.yaml"], "error: 'there.yaml' exists: choose another name, or remove it first"),
        (["cp", "toy", "no/folder.yaml"], "error: 'no/folder.yaml' cannot be written (No such file or directory)"),
        (["cp", "nothing", "mine.yaml"], "invalid choice: 'nothing'"),
        (["run", "nothing"], "error: the recipe is 'nothing' but must be "),
        (["run", "no.yaml"], "error: the configuration is 'no.yaml' but must be a file that ends with .yaml"),
        (["run", "toy", "--config-dir", "no"], "error: --config-dir is 'no' but must be a folder with YAML files"),
        (["run", "toy", "--config-dir"], "error: --config-dir is '' but must be a folder"),
        (["run", "toy", "--quick"], "error: unknown option --quick"),
        (["run"], "the following arguments are required: recipe"),
        (["fly"], "invalid choice: 'fly'"),
    ],
)
def test_what_cannot_be_is_said(arguments, expected, command, tmp_path):
    (tmp_path / "there.yaml").touch()
    _, error, code = command(*arguments)
    assert code == 2 and expected in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]


def test_a_key_in_a_folder_of_ones_own_is_found(command, tmp_path):
    (tmp_path / "mine" / "encoder").mkdir(parents=True)
    (tmp_path / "mine" / "encoder" / "wide.yaml").write_text("defaults: [htrmrl_toy, _self_]\nd_model: 96\n")
    out, error, code = command("run", "toy", "--config-dir", "mine", "encoder=wide", "--cfg")
    assert code == 0 and "d_model: 96\n" in out, error


def test_the_command_to_continue_is_the_one_that_was_given(command):
    command("run", "toy", "seed=3", "run_dir='a b'", "--cfg")
    assert console.command_line() == """htrmrl run toy seed=3 'run_dir='"'"'a b'"'"'' --cfg"""
    assert command_to_continue().startswith("htrmrl run toy seed=3 ")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("htrmrl ", {"ls", "cp", "run", *cli.TOOLS}),
        ("htrmrl run t", {"toy"}),
        ("htrmrl run toy env.num_e", {"env.num_envs="}),
        ("htrmrl run toy encoder=tr", {"encoder=trmrl"}),
        ("htrmrl look-inside spl", {"split="}),
    ],
)
def test_a_shell_completes_words(line, expected, tmp_path):
    answer = tmp_path / "answer"
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "htrmrl_torchrl.cli"], env=environment, cwd=tmp_path, timeout=60)
    assert expected == {word.strip() for word in answer.read_text().split("\n")} - {"--help", "-h", ""}


# ------------------------------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The ``htrmrl`` of an environment with the wheel, all that this one has, and no clone."""
    folder = tmp_path_factory.mktemp("wheel")
    # A folder that a .pth file adds is not searched for other .pth files: the clone's editable install is not there.
    python = install(
        build_wheel(folder), folder, packages=[path for path in sys.path if path.endswith("site-packages")]
    )
    return python.with_name("htrmrl")


def test_a_wheel_runs_in_an_empty_folder(installed, tmp_path):
    def htrmrl(*arguments):
        done = subprocess.run(
            [installed, *arguments], cwd=tmp_path, env=plain_environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(ROOT) not in htrmrl("run", "toy", "--help")  # its configurations are those of the wheel
    htrmrl("cp", "toy", "mine.yaml")
    assert "run_dir: runs/mine_seed1\n" in htrmrl("run", "mine.yaml", "--cfg")
    htrmrl("run", "toy", *TINY, "total_frames=192", "env.num_workers=2", "seed=4")
    summary = json.loads((tmp_path / "runs" / "toy_ppo_seed4" / "summary.json").read_text())
    assert summary["progress"]["commits"] == [version("htrmrl_torchrl")]
    assert summary["command"].startswith("htrmrl run toy ")
    shown = htrmrl("evaluate", "checkpoint=runs/toy_ppo_seed4", "split=val", "goals_per_task=1", "num_workers=0")
    assert "hidden-goal" in shown
