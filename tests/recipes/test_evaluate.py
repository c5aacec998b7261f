"""`recipes/evaluate.py` as a user runs it: a table, a report, two figures; wrong input ends in one sentence."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from htrmrl_torchrl import evaluate as evaluate_agent
from htrmrl_torchrl.checkpoints.checkpoint import read_component
from htrmrl_torchrl.envs import check_name, task_names
from htrmrl_torchrl.evaluation import EvaluationReport
from recipes import evaluate
from tests.checkpoints.test_archive import forged
from tests.recipes.runs import family, here, leaves_a_mark, named_otherwise, train_here, wait_for, workers
from tests.recipes.test_ppo import ROOT, TINY

SMALL = ["num_workers=0", "adaptation_episodes=2"]
SCRIPT = str(ROOT / "recipes" / "evaluate.py")


def in_a_process(*arguments, cwd):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=300, cwd=cwd)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with one run, of 8 lanes * 4 episodes * 6 steps."""
    folder = tmp_path_factory.mktemp("runs")
    train_here(folder / "toy_seed1", "total_frames=192", *TINY)
    return folder / "toy_seed1"


@pytest.fixture
def recipe(monkeypatch, capsys):
    return here(monkeypatch, capsys, evaluate, config_name="evaluate")


def test_the_recipe_prints_a_table_and_leaves_a_report_and_two_figures(trained, recipe, tmp_path):
    arguments = [f"checkpoint={trained}", *SMALL, "seed=3"]
    done = in_a_process(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    folder = trained / "evaluations"
    stem = "toy_test_strict_4goals_2+1episodes_seed3_000000000192"
    names = {path.name for path in folder.iterdir() if path.name.startswith("toy_")}
    assert names == {f"{stem}.json", f"{stem}_by_task.png", f"{stem}_by_episode.png"}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in names if name.endswith(".png"))

    report = EvaluationReport.load(folder / f"{stem}.json")
    assert str(report) in done.stdout
    assert report.success.shape == (1, 4, 3) and report.goal.tolist() == [0, 1, 2, 3]
    (checkpoint,) = (trained / "checkpoints").glob("best-*")
    expected = evaluate_agent(checkpoint, "toy", adaptation_episodes=2, seed=3)
    assert report.runs == expected.runs
    assert report.success.tolist() == expected.success.tolist() and report.returns.tolist() == expected.returns.tolist()
    assert report.command == " ".join(["python", SCRIPT, *arguments])

    before = {name: (folder / name).read_bytes() for name in names}
    (folder / f"{stem}.json").unlink()
    _, error, code = recipe(*arguments)
    assert code == 0, error
    assert (folder / f"{stem}.json").read_bytes() == before[f"{stem}.json"]


def test_a_pattern_is_one_report_of_all_runs(trained, recipe, tmp_path):
    for seed in (1, 2):
        shutil.copytree(trained / "checkpoints", tmp_path / f"toy_seed{seed}" / "checkpoints")
    out, error, code = recipe(f"checkpoint={tmp_path}/toy_seed*", f"out={tmp_path}/out", "split=val", *SMALL)
    assert code == 0, error
    (path,) = (tmp_path / "out").glob("toy_val_strict_*_2runs_*.json")
    report = EvaluationReport.load(path)
    assert report.success.shape == (2, 4, 3)
    assert [Path(run["checkpoint"]).parents[1].name for run in report.runs] == ["toy_seed1", "toy_seed2"]
    assert str(report) in out and "2 runs, 95% over runs: " in out


@pytest.mark.slow
def test_reports_that_were_counted_differently_do_not_overwrite_each_other(trained, recipe, tmp_path):
    for seed in (1, 2):
        other = tmp_path / f"toy_seed{seed}" / "checkpoints"
        shutil.copytree(trained / "checkpoints", other)
    flip = next(other.glob("best-*"))
    train_here(tmp_path / "other", "total_frames=192", "seed=2", *TINY)
    shutil.copy(next((tmp_path / "other" / "checkpoints").glob("best-*")), flip)
    out, counts = tmp_path / "out", []
    asked = [("toy_seed1", how) for how in ("", "horizon=5", "evaluation_actions=sampled", "benchmark_seed=1")]
    for checkpoint, how in [*asked, ("toy_seed2", ""), ("toy_seed*", "")]:
        _, error, code = recipe(f"checkpoint={tmp_path / checkpoint}", f"out={out}", *SMALL, *how.split())
        assert code == 0, error
        counts.append(len(list(out.glob("*.json"))))
    assert counts == [1, 2, 3, 4, 5, 6]


def test_the_goals_are_of_the_seed_that_the_agent_was_trained_with(trained, recipe, tmp_path):
    train_here(tmp_path / "seed1", "total_frames=192", "env.benchmark_seed=3", *TINY)
    shutil.copytree(trained / "checkpoints", tmp_path / "seed2" / "checkpoints")
    for arguments, expected in ([], 3), (["benchmark_seed=0"], 0), (["benchmark_seed=4"], 4):
        _, error, code = recipe(
            f"checkpoint={tmp_path / 'seed1'}", f"out={tmp_path / str(expected)}", *SMALL, *arguments
        )
        assert code == 0, error
        (path,) = (tmp_path / str(expected)).glob("*.json")
        assert EvaluationReport.load(path).benchmark_seed == expected
    _, error, code = recipe(f"checkpoint={tmp_path}/seed*", *SMALL)
    assert code == 2 and "trained on goals of the seeds [0, 3]: give one" in error


@pytest.mark.slow
def test_a_fold_is_trained_and_evaluated_on_its_held_out_tasks(recipe, tmp_path):
    short = ["env.name=ML10:fold=1", "env.num_envs=8", "env.num_workers=0", "env.episodes_per_trial=2"]
    short += ["env.horizon=10", "total_frames=160", "loss.minibatch_frames=80", "loss.segment_frames=10"]
    short += ["eval.goals_per_task=1", "eval.horizon=5", "eval.adaptation_episodes=2", "eval.memory_gain=true"]
    short += ["encoder.episodes=2"]
    run_dir = tmp_path / "run"
    train_here(run_dir, *short, recipe="ml10_ppo")
    metrics = json.loads((run_dir / "summary.json").read_text())["metrics"]
    held_out = ["button-press-topdown-v3", "reach-v3"]
    for split, tasks in (("val", set(task_names("ML10")) - {*held_out}), ("test", {*held_out})):
        played = {
            name.partition("/")[2].partition("/")[2] for name in metrics if name.startswith(f"eval/{split}_success/")
        }
        assert played == tasks and -1 <= metrics[f"eval/{split}_memory_gain"] <= 1
    assert {name for name in metrics if name.startswith("train/success/")} == {
        f"train/success/{task}" for task in set(task_names("ML10")) - {*held_out}
    }
    arguments = [f"checkpoint={run_dir}", *SMALL, "horizon=5", "goals_per_task=1", f"out={tmp_path / 'out'}"]
    out, error, code = recipe(*arguments, "memory_gain=true")
    assert code == 0 and "ML10:fold=1 test" in out and "gain from memory: success in episodes 2 to 2" in out, error
    (path,) = (tmp_path / "out").glob("ML10_fold_1_test_strict_1goals_*_memory_gain_*.json")
    report = EvaluationReport.load(path)
    assert report.tasks == held_out and report.benchmark == "ML10:fold=1" and report.without_memory.shape == (1, 2, 1)
    assert (
        recipe(*arguments)[2] == 0 and len(list((tmp_path / "out").glob("*.json"))) == 2
    )  # neither replaces the other
    _, error, code = recipe(*arguments, "benchmark=ML10:fold=7")
    assert code == 2 and "Received 'ML10:fold=7'; a fold is written ML10:fold=<n>" in error


def test_stages_of_a_meta_world_run(recipe, tmp_path):
    short = ["env.num_envs=2", "env.num_workers=0", "env.episodes_per_trial=2", "env.horizon=20", "total_frames=80"]
    short += ["loss.minibatch_frames=40", "loss.segment_frames=20", "eval.goals_per_task=1", "eval.horizon=5"]
    train_here(tmp_path / "run", *short, recipe="ml1_ppo")
    arguments = [f"checkpoint={tmp_path / 'run'}", *SMALL, "stages=true", "horizon=10", "goals_per_task=2"]
    out, err, code = recipe(*arguments, f"out={tmp_path / 'out'}")
    assert code == 0, err
    (path,) = (tmp_path / "out").glob("*_stages.json")
    stages = json.loads(path.read_text())["reach-v3"]
    assert set(stages) == {"near", "grasped", "in place", "success"} and stages["grasped"] == 1  # nothing to grasp
    assert 0 < stages["in place"] < 1
    assert "in place" in out and "reach-v3" in out


def test_a_checkpoint_file_and_no_adaptation(trained, recipe, tmp_path):
    """Without adaptation there is no curve to draw."""
    checkpoint = max((trained / "checkpoints").glob("step-*"))
    arguments = ["num_workers=0", "adaptation_episodes=0", "goals_per_task=2", f"out={tmp_path}"]
    _, error, code = recipe(f"checkpoint={checkpoint}", *arguments)
    assert code == 0, error
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:8]
    stem = f"toy_test_strict_2goals_0+1episodes_seed0_000000000192_{digest}"
    assert {path.name for path in tmp_path.iterdir()} == {f"{stem}.json", f"{stem}_by_task.png"}
    content = json.loads((tmp_path / f"{stem}.json").read_text())
    assert content["runs"][0]["checkpoint"] == str(checkpoint) and content["goal"] == [0, 1]


def test_reports_of_checkpoints_side_by_side_do_not_replace_each_other(trained, recipe, tmp_path):
    kept = [shutil.copy(path, tmp_path) for path in sorted((trained / "checkpoints").iterdir())]
    for chosen in (*kept, f"{tmp_path}/*.torchrl"):
        _, error, code = recipe(f"checkpoint={chosen}", "num_workers=0", "adaptation_episodes=0", "goals_per_task=1")
        assert code == 0, error
    reports = [EvaluationReport.load(path) for path in (tmp_path / "evaluations").glob("*.json")]
    assert sorted(tuple(run["checkpoint"] for run in report.runs) for report in reports) == sorted(
        [*((path,) for path in kept), tuple(kept)]
    )


WRONG = {
    "no checkpoint": ([], ["checkpoint is missing", "checkpoint=runs/ml10_ppo_seed1"]),
    "nothing there": (["checkpoint={tmp}/nowhere"], ["nowhere' but nothing is there"]),
    "nothing that matches": (["checkpoint={tmp}/nowhere*"], ["nowhere*' but nothing is there"]),
    "a folder without checkpoints": (["checkpoint={tmp}"], ["a folder without checkpoints/"]),
    "another file": (["checkpoint={tmp}/foreign.torchrl"], ["foreign.torchrl is not a checkpoint of this package"]),
    "another file, known benchmark": (
        ["checkpoint={tmp}/foreign.torchrl", "benchmark=toy"],
        ["foreign.torchrl is not a checkpoint of this package"],
    ),
    "a truncated checkpoint": (["checkpoint={tmp}/half.torchrl"], ["half.torchrl is not a checkpoint"]),
    "one of two is foreign": (["checkpoint={tmp}/*.torchrl", "benchmark=toy"], ["foreign.torchrl is not a checkpoint"]),
    "unknown split": (["checkpoint={run}", "split=tset"], ["split is 'tset'", "train or val or test"]),
    "unknown benchmark": (["checkpoint={run}", "benchmark=ML11"], ["'ML11'", "ML10"]),
    "a benchmark of other sizes": (
        ["checkpoint={run}", "benchmark=ML1:reach-v3", "goals_per_task=1", "num_workers=0"],
        ["sizes (3, 2); this benchmark has (39, 4)"],
    ),
    "goals beyond": (["checkpoint={run}", "protocol=garage", "goals_per_task=5"], ["goals_per_task is 5", "at most 4"]),
    "official evaluator": (["checkpoint={run}", "protocol=metaworld"], ["'toy' is none of Meta-World's own"]),
    "long episodes": (["checkpoint={run}", "benchmark=ML10", "horizon=501"], ["at most 500 in ML10", "501"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_ends_in_one_sentence(case, trained, recipe, tmp_path):
    (tmp_path / "foreign.torchrl").write_text("hello")
    (checkpoint,) = (trained / "checkpoints").glob("best-*")
    (tmp_path / "half.torchrl").write_bytes(checkpoint.read_bytes()[:10_000])
    arguments, parts = WRONG[case]
    out, error, code = recipe(*(argument.format(tmp=tmp_path, run=trained) for argument in arguments))
    assert code == 2 and out == ""
    assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1
    assert all(part in error for part in parts), error
    assert {path.name for path in tmp_path.iterdir()} == {"foreign.torchrl", "half.torchrl"}


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
    given = ["benchmark=toy", "num_workers=0", "adaptation_episodes=0", "goals_per_task=1", f"out={tmp_path / 'out'}"]
    _, error, code = recipe(f"checkpoint={evil}", *given)
    assert code == 0, error
    assert not mark.exists()
    check_name(name)
    assert mark.exists()


@pytest.mark.parametrize("name", ["step", "best"])
def test_a_pipe_among_the_checkpoints_is_passed_over(name, trained, recipe, tmp_path):
    shutil.copytree(trained / "checkpoints", tmp_path / "run" / "checkpoints")
    os.mkfifo(tmp_path / "run" / "checkpoints" / f"{name}-999999999999.torchrl")
    arguments = ["num_workers=0", "adaptation_episodes=0", "goals_per_task=1"]
    _, error, code = recipe(f"checkpoint={tmp_path / 'run'}", *arguments)
    assert code == 0, error


def test_crafted_files_end_in_one_sentence(trained, recipe, tmp_path):
    (checkpoint,) = (trained / "checkpoints").glob("best-*")
    crafted = {
        ("0001-agent", "d_model"): 10**7, ("0007-progress", "frames"): "many", ("0002-config", "env"): {"name": "toy"},
    }  # fmt: skip
    for (component, key), value in crafted.items():
        name = component.partition("-")[2]
        entries = {**read_component(checkpoint, name), key: value}
        evil = forged(
            checkpoint, tmp_path / "evil.torchrl", files={f"components/{component}/value.json": json.dumps(entries)}
        )
        out, error, code = recipe(f"checkpoint={evil}", *SMALL)
        assert (out, code) == ("", 2) and error.count("\n") == 1, error
        assert error.startswith(f"error: {evil} is not a checkpoint of this package, or damaged ("), error


def test_a_real_process_refuses_in_one_sentence(tmp_path):
    done = in_a_process("checkpoint=nowhere", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: checkpoint is 'nowhere' but nothing is there\n"


@pytest.mark.slow
def test_a_hanging_worker_ends_it_after_the_time_given(trained, tmp_path):
    said, out = tmp_path / "stderr", tmp_path / "out"
    arguments = [f"checkpoint={trained}", f"out={out}", "adaptation_episodes=1_000_000", "worker_timeout=10"]
    with said.open("w") as file:
        process = subprocess.Popen([sys.executable, SCRIPT, *arguments], stderr=file, start_new_session=True)
    wait_for(lambda: re.search(r"\d frames/s", said.read_text()), what="its first steps")
    os.kill(workers(process)[0], signal.SIGSTOP)
    assert process.wait(timeout=300) == 1
    assert "did not answer within 10 s and was killed" in said.read_text()
    wait_for(lambda: not family(process), what="the end of all its processes")
    assert not out.exists()
