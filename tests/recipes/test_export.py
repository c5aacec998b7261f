"""`recipes/export.py` as a user runs it: one small file or a folder, which is evaluated and which no run continues."""

import json
import subprocess

import pytest

from htrmrl_torchrl import evaluate
from recipes import export
from tests.recipes.runs import TINY, command, here, train_here


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 8 lanes * 4 episodes * 6 steps."""
    folder = tmp_path_factory.mktemp("runs") / "toy_seed1"
    train_here(folder, "total_frames=192", *TINY)
    return folder


@pytest.fixture
def recipe(monkeypatch, capsys):
    return here(monkeypatch, capsys, export, config_name="export")


def test_one_small_file_that_is_evaluated_like_the_checkpoint(trained, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said, error, code = recipe(f"checkpoint={trained}", "out=agent.torchrl")
    assert code == 0, error
    (out,) = tmp_path.iterdir()
    (checkpoint,) = (trained / "checkpoints").glob("best-*")
    assert out.name == "agent.torchrl" and 2 * out.stat().st_size < checkpoint.stat().st_size
    assert said == (f"agent.torchrl: {out.stat().st_size / 1e6:.1f} MB, the agent of {checkpoint} after 192 frames\n")
    expected, found = (evaluate(path, "toy", adaptation_episodes=2) for path in (checkpoint, out))
    assert found.success.tolist() == expected.success.tolist() and found.returns.tolist() == expected.returns.tolist()
    assert [run["frames"] for run in found.runs] == [192]


def test_a_folder_with_a_card_of_its_run_and_its_report(trained, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (checkpoint,) = (trained / "checkpoints").glob("best-*")
    report = evaluate(checkpoint, "toy", adaptation_episodes=2)
    report.save("report.json")
    said, error, code = recipe(f"checkpoint={trained}", "out=agent/", "report=report.json")
    assert code == 0, error
    files = [tmp_path / "agent" / name for name in ("README.md", "config.json", "model.safetensors")]
    assert sorted((tmp_path / "agent").iterdir()) == files
    size = sum(file.stat().st_size for file in files)
    assert said == f"agent/: {size / 1e6:.1f} MB, the agent of {checkpoint} after 192 frames\n"
    card = files[0].read_text()
    assert str(report) in card and json.loads((trained / "summary.json").read_text())["command"] in card
    found = evaluate("agent", "toy", adaptation_episodes=2)
    assert found.success.tolist() == report.success.tolist() and found.returns.tolist() == report.returns.tolist()
    said, error, code = recipe("checkpoint=agent", "out=again.torchrl")  # and back
    assert code == 0, error
    assert evaluate("again.torchrl", "toy", adaptation_episodes=2).returns.tolist() == report.returns.tolist()


def test_a_report_of_another_checkpoint_is_refused(trained, recipe, tmp_path):
    other = next((trained / "checkpoints").glob("step-*"))
    evaluate([other, other], "toy", adaptation_episodes=2).save(tmp_path / "report.json")
    _, error, code = recipe(f"checkpoint={trained}", f"out={tmp_path}/agent/", f"report={tmp_path}/report.json")
    assert code == 2 and "which is not of" in error and not (tmp_path / "agent").exists()


@pytest.mark.slow
def test_no_run_goes_on_from_it(trained, recipe, tmp_path):
    assert recipe(f"checkpoint={trained}", f"out={tmp_path}/agent.torchrl")[2] == 0
    resumed = command(tmp_path / "run", "total_frames=384", f"resume={tmp_path}/agent.torchrl")
    done = subprocess.run(resumed, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: cannot continue:") and "agent.torchrl has no env" in done.stderr


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["out=agent.torchrl"], "checkpoint is missing"),
        (["checkpoint={run}"], "out is missing: give the file to write"),
        (["checkpoint={run}/checkpoints/*", "out={run}/agent.torchrl"], "which are 3 checkpoints: give one of them"),
        (["checkpoint={run}", "out={run}"], "a folder: give the file to write"),
        (["checkpoint={run}", "out={run}/config.yaml/"], "config.yaml is a file: choose a folder"),
        (["checkpoint={run}", "out=x.torchrl", "report={run}/summary.json"], "end out with a slash, out=agent/"),
        (["checkpoint={run}", "out={run}/agent/", "report={run}/summary.json"], "summary.json', which cannot be read"),
        (["checkpoint={run}", "out={run}/agent/", "report={run}/none.json"], "none.json', which cannot be read"),
        (["checkpoint={run}/config.yaml", "out={run}/agent.torchrl"], "is not a checkpoint of this package"),
        (["checkpoint={run}", "out={run}/config.yaml/agent.torchrl"], "config.yaml"),
    ],
)
def test_wrong_input_ends_in_one_sentence(trained, recipe, arguments, said):
    before = sorted(path for path in trained.rglob("*"))
    out, error, code = recipe(*(argument.format(run=trained) for argument in arguments))
    assert (out, code) == ("", 2) and said in error and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(path for path in trained.rglob("*")) == before
