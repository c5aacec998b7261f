"""Sweeps: what the cells are, that all are checked first, what is run again, and what the table says."""

import csv
import json
import math
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from htrmrl_torchrl.evaluation.intervals import interval_over_runs
from htrmrl_torchrl.faults import UserError
from recipes.ablate import AXES, check, figure, write_table
from recipes.configuration import cells as _ablation
from recipes.configuration.cells import Cell, expand, plan, rank, tabulate
from recipes.configuration.compose import load_config
from tests.recipes.runs import hear_all_signals, python_path, wait_for

ROOT = Path(__file__).resolve().parents[2]
TINY = ["env.num_envs=8", "loss.minibatch_frames=96", "total_frames=384"]


def command(*arguments):
    return [sys.executable, str(ROOT / "recipes" / "ablate.py"), *arguments]


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=600)


# ------------------------------------------------------------------------------------------------------- cells


def test_cells_are_all_combinations_in_hydras_reading():
    axes, cells = expand(["a.b=1,2", "c=x", "seed=range(1,4)"])
    assert axes == ["a.b", "seed"]
    assert cells == [{"a.b": b, "c": "x", "seed": s} for b in "12" for s in "123"]


def test_quoted_values_stay_whole():
    axes, cells = expand(["env.name='custom:[a,b]/[c]','custom:[a]/[c]'"])
    assert axes == ["env.name"] and [cell["env.name"] for cell in cells] == ["'custom:[a,b]/[c]'", "'custom:[a]/[c]'"]


@pytest.mark.parametrize("wrong", ["optim.lr=interval(0,1)", "seed", "env.name=custom:[a]/[b]"])
def test_what_is_no_sweep_is_refused_in_one_sentence(wrong):
    with pytest.raises(UserError) as refused:
        expand([wrong])
    assert "\n" not in str(refused.value)


def test_folders_follow_from_the_values_and_are_different_for_different_ones(tmp_path):
    names = [["env.name='custom:[reach-v3]/[push-v3]'"], ["env.name='custom:{reach-v3}/{push-v3}'"]]
    folders = {_ablation._folder_name(expand([*name])[1][0]) for name in names}
    assert len(folders) == 2 and not any(set("/[]{}' ") & set(folder) for folder in folders)
    axes, cells = plan("toy_ppo", ["encoder.window=1,3", "seed=1,2", *TINY], tmp_path)
    assert axes == ["encoder.window"]
    assert [cell.run_dir.relative_to(tmp_path).as_posix() for cell in cells] == [
        f"encoder.window={window}/seed={seed}" for window in (1, 3) for seed in (1, 2)
    ]


@pytest.mark.parametrize("axis", AXES)
def test_every_ready_made_axis_is_a_sweep_of_valid_cells(axis, tmp_path):
    config = load_config("ablate", [f"axis={axis}", "recipe=ml10_ppo"], check)
    axes, cells = plan("ml10_ppo", [*config.axes[axis], "seed=1"], tmp_path)
    assert axes and len(cells) > 1


WRONG = {
    "a value": (["encoder.window=1,0"], ["encoder.window=0", "must be at least 1"]),
    "a combination": (["encoder.d_model=32,64", "encoder.num_heads=4,48"], ["encoder.num_heads=48", "multiple of"]),
    "unknown strategy": (
        ["memory.strategy=recent,best"],
        ["'best'", "recent or uniform or uniform_last or best_return"],
    ),
    "unknown key": (["encoder.widow=1,2"], ["unknown key 'encoder.widow'", "encoder.window"]),
    "run_dir": (["run_dir=here", "seed=1,2"], ["run_dir is each cell's own", "out=<folder>"]),
    "recipe": (["recipe=toy"], ["recipe is 'toy'", "toy_ppo"]),
    "axis": (["axis=width"], ["axis is 'width'", "window or episodes"]),
    "seeds": (["seeds=[]"], ["seeds is []", "a list of numbers"]),
    "a seed": (["seeds=3"], ["seeds is 3", "a list, as in [1,2]"]),
    "jobs": (["jobs=0"], ["jobs is 0", "at least 1"]),
    "option": (["--multirun"], ["--multirun", "--cfg"]),
}


@pytest.mark.parametrize(("arguments", "parts"), WRONG.values(), ids=WRONG)
def test_a_wrong_sweep_ends_before_anything_starts(arguments, parts, tmp_path, monkeypatch, capsys):
    from recipes import ablate

    monkeypatch.setattr(sys, "argv", ["ablate.py", f"out={tmp_path / 'out'}", *arguments])
    with pytest.raises(SystemExit) as ended:
        ablate.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert all(part in error for part in parts), error
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- table and figure


def made_up(folder, window, strategy, seed, score, *, seconds, frames=1000):
    """A finished run of which only the numbers exist."""
    run_dir = folder / f"{window}{strategy}{seed}"
    run_dir.mkdir(parents=True)
    (run_dir / "summary.json").write_text(
        json.dumps({"progress": {"frames": frames}, "metrics": {"eval/val_success": score}})
    )
    lines = ["frames,metric,value"]
    for at, share in ((frames // 2, 0.25), (frames, 0.75)):
        lines += [f"{at},time/collect,{0.6 * share * seconds}", f"{at},time/update,{0.4 * share * seconds}"]
        lines += [f"{at},time/evaluate,99"]
    (run_dir / "metrics.csv").write_text("\n".join(lines) + "\n")
    return Cell({"encoder.window": window, "memory.strategy": strategy}, [], run_dir, 1000)


@pytest.fixture
def cells(tmp_path):
    return [
        made_up(tmp_path, "1", "recent", 1, 0.25, seconds=10),
        made_up(tmp_path, "1", "recent", 2, 0.75, seconds=40),
        made_up(tmp_path, "3", "recent", 1, 0.5, seconds=5),
        made_up(tmp_path, "1", "uniform", 1, 1.0, seconds=20),
        made_up(tmp_path, "3", "uniform", 1, 0.0, seconds=20, frames=999),  # has to go on
    ]


def test_the_table_is_what_one_works_out_by_hand(cells, tmp_path):
    rows = tabulate(cells, "eval/val_success")
    write_table(rows, ["encoder.window", "memory.strategy"], "eval/val_success", tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == [
        "encoder.window", "memory.strategy", "seeds", "eval/val_success", "low", "high", "frames_per_second", "seconds",
    ]  # fmt: skip
    # Two seeds: 1000 frames in 10 and 40 s are 100 and 25 frames/s. Scores of 0.25 and 0.75 have a standard error of
    # 0.25, and Student's t with one degree of freedom is tan(0.95 * pi / 2).
    reach = 0.25 * math.tan(0.475 * math.pi)
    assert table[1][:3] == ["1", "recent", "2"]
    assert [float(x) for x in table[1][3:]] == pytest.approx([0.5, 0.5 - reach, 0.5 + reach, 62.5, 25.0])
    assert table[2][:6] == ["3", "recent", "1", "0.5", "", ""]
    assert [float(x) for x in table[2][6:]] == pytest.approx([200, 5])
    assert table[3][:4] == ["1", "uniform", "1", "1.0"] and len(table) == 4


def test_folds_need_no_quotes_and_their_cells_are_valid(tmp_path):
    axes, cells = plan("ml10_ppo", ["env.name=ML10:fold=1,ML10:fold=2", "seed=1"], tmp_path)
    assert axes == ["env.name"] and len({cell.run_dir for cell in cells}) == 2
    configs = [load_config("ml10_ppo", cell.overrides) for cell in cells]
    assert [config.env.name for config in configs] == ["ML10:fold=1", "ML10:fold=2"]
    with pytest.raises(UserError, match=r"env.name='ML10:fold=6'.*a fold is written ML10:fold=<n>"):
        plan("ml10_ppo", ["env.name=ML10:fold=1,ML10:fold=6"], tmp_path)


SCORES = {  # arm: by fold, seeds 1 and 2
    "uniform": {"'ML10:fold=1'": (0.5, 0.1), "'ML10:fold=2'": (0.1, 0.1)},
    "best_return": {"'ML10:fold=1'": (0.2, 0.3), "'ML10:fold=2'": (0.4, 0.5)},
}


def folds_of(folder, scores):
    cells = []
    for arm, by_fold in scores.items():
        for fold, of_seeds in by_fold.items():
            for seed, score in enumerate(of_seeds, start=1):
                made = made_up(folder / f"{len(cells)}", "1", arm, seed, score, seconds=10)
                run_dir = made.run_dir.rename(made.run_dir.with_name(f"seed={seed}"))
                cells.append(Cell({"env.name": fold, "memory.strategy": arm}, [], run_dir, 1000))
    return cells


def test_arms_are_ranked_by_the_mean_over_folds_and_seeds(tmp_path):
    """best_return has seeds at 0.3 and 0.4, uniform at 0.3 and 0.1, though it has the best cell."""
    first, second = rank(folds_of(tmp_path, SCORES), "eval/val_success")
    assert first.values == {"memory.strategy": "best_return"} and second.values == {"memory.strategy": "uniform"}
    assert first.scores == pytest.approx([0.3, 0.4]) and second.scores == pytest.approx([0.3, 0.1])
    assert first.interval == pytest.approx(interval_over_runs([0.3, 0.4]))
    assert (first.frames_per_second, first.seconds) == (pytest.approx(100), pytest.approx(10))


def test_a_seed_counts_once_all_its_folds_are_finished(tmp_path):
    cells = folds_of(tmp_path, SCORES)
    (cells[7].run_dir / "summary.json").unlink()  # best_return, fold 2, seed 2
    first = rank(cells, "eval/val_success")[0]
    assert first.values == {"memory.strategy": "best_return"} and first.scores == pytest.approx([0.3])
    (cells[0].run_dir / "summary.json").unlink()
    (cells[3].run_dir / "summary.json").unlink()
    assert [row.values["memory.strategy"] for row in rank(cells, "eval/val_success")] == ["best_return"]


@pytest.mark.parametrize("names", [["'ML10:fold=1'"], ["'ML10:fold=1'", "ML10"], ["'ML10:fold=1'", "'ML45:fold=1'"]])
def test_other_environments_are_not_averaged(names, tmp_path):
    assert rank(folds_of(tmp_path, {"uniform": dict.fromkeys(names, (0.5,))}), "eval/val_success") == []


def test_a_metric_that_the_runs_do_not_have_is_named(cells):
    with pytest.raises(UserError, match=r"metric is eval/success but .* eval/val_success"):
        tabulate(cells, "eval/success")


@pytest.mark.parametrize("damage", [b"", b'{"progress": {"frames": 1000}', b"\xff\xfe", b"[]"])
def test_a_cell_with_a_damaged_summary_goes_on(damage, cells):
    """The run itself names it and writes it anew."""
    assert cells[0].summary() is not None
    (cells[0].run_dir / "summary.json").write_bytes(damage)
    assert cells[0].summary() is None
    assert len(tabulate(cells, "eval/val_success")[0].scores) == 1  # of two


def test_a_damaged_row_or_curve_costs_the_speed_and_not_the_table(cells, capsys):
    first, _, third, *_ = cells
    with (first.run_dir / "metrics.csv").open("a") as file:
        file.write("750,time/collect\n750,time/update,1,2\n")
    rows = tabulate(cells, "eval/val_success")
    assert rows[0].frames_per_second == pytest.approx(62.5)  # what is whole is counted
    assert f"{first.run_dir / 'metrics.csv'} has 2 damaged rows" in capsys.readouterr().err
    (third.run_dir / "metrics.csv").unlink()
    rows = tabulate(cells, "eval/val_success")
    assert math.isnan(rows[1].frames_per_second) and rows[1].mean == 0.5
    assert f"{third.run_dir / 'metrics.csv'} cannot be read (No such file or directory)" in capsys.readouterr().err


def test_the_figure_shows_every_row(cells):
    scores, speed = figure(tabulate(cells, "eval/val_success"), "encoder.window", "eval/val_success").axes
    assert [text.get_text() for text in scores.get_xticklabels()] == ["1", "3"]
    recent, _, _, uniform, _ = scores.lines  # each line of means, then the seeds of its rows
    assert list(recent.get_ydata()) == [0.5, 0.5] and list(uniform.get_ydata()) == [1.0]
    assert [list(line.get_ydata()) for line in speed.lines] == [pytest.approx([62.5, 200]), pytest.approx([50])]


def test_what_a_run_may_change_a_cell_may_change(tmp_path):
    load = load_config("toy_ppo", [*TINY, "seed=1", f"run_dir='{tmp_path}/all/seed=1'"])
    (tmp_path / "all" / "seed=1").mkdir(parents=True)
    OmegaConf.save(load, tmp_path / "all" / "seed=1" / "config.yaml")
    for change in (
        "env.restart_workers=true",
        "env.worker_timeout=120.0",
        "faults.max_in_a_row=5",
        "checkpoint.keep=9",
    ):
        plan("toy_ppo", [*TINY, "seed=1", change], tmp_path)
    with pytest.raises(UserError, match=r"holds a run with optim\.lr="):
        plan("toy_ppo", [*TINY, "seed=1", "optim.lr=0.1"], tmp_path)
    with pytest.raises(UserError, match="resume is set by the sweep"):
        plan("toy_ppo", [*TINY, "seed=1", "resume=never"], tmp_path)


# ------------------------------------------------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("ablation") / "out"
    arguments = [f"out={out}", "encoder.window=1,3", "seed=1,2", *TINY]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return out, arguments, done


@pytest.mark.slow
def test_a_real_sweep_leaves_runs_table_and_figure(swept):
    out, _, done = swept
    assert "4 cells, 0 finished; axes: encoder.window" in done.stdout
    assert {path.name for path in out.iterdir()} == {
        "encoder.window=1", "encoder.window=3", "table.csv", "encoder.window.png", "ablation.yaml",
    }  # fmt: skip
    with (out / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for row in table:
        folder = out / f"encoder.window={row['encoder.window']}"
        runs = [json.loads((folder / f"seed={seed}" / "summary.json").read_text()) for seed in (1, 2)]
        assert [r["config"]["encoder"]["window"] for r in runs] == [int(row["encoder.window"])] * 2
        assert [r["config"]["seed"] for r in runs] == [1, 2]
        scores = [r["metrics"]["eval/val_success"] for r in runs]
        assert float(row["eval/val_success"]) == statistics.mean(scores)
        interval = interval_over_runs(scores)
        assert [row["low"], row["high"]] == (["", ""] if interval is None else [str(end) for end in interval])
        assert float(row["frames_per_second"]) > 0
    assert len(table) == 2


@pytest.mark.slow
def test_only_what_is_missing_runs_again(swept):
    """A cell without a summary; the others are left alone. More frames, and all go on."""
    out, arguments, _ = swept
    table = (out / "table.csv").read_text()
    kept, lost = (out / "encoder.window=3" / f"seed={seed}" / "summary.json" for seed in (1, 2))
    before, stamp = json.loads(lost.read_text()), kept.stat().st_mtime_ns
    lost.unlink()
    done = run(*arguments)
    assert done.returncode == 0 and "4 cells, 3 finished" in done.stdout
    assert json.loads(lost.read_text())["metrics"] == before["metrics"]
    assert (out / "table.csv").read_text() == table and kept.stat().st_mtime_ns == stamp
    done = run(*arguments, "optim.lr=0.5")
    assert done.returncode == 2 and "optim.lr=0.001 and this one has optim.lr=0.5" in done.stderr
    fixed = [argument for argument in arguments[:-1] if not argument.startswith(("encoder.window=", "seed="))]
    done = run(*fixed, "total_frames=576", "encoder.window=1", "seed=1")
    assert done.returncode == 0 and "1 cells, 0 finished" in done.stdout


# Holds the lock of a run folder, as a run of another sweep does.
HOLDER = """
import sys
from pathlib import Path
from htrmrl_torchrl.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


def test_a_cell_that_runs_already_is_left_alone(tmp_path, monkeypatch, capsys):
    from recipes import ablate

    cell = tmp_path / "out" / "all" / "seed=1"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(cell)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": python_path(ROOT)},
    )  # fmt: skip
    assert other.stdout.readline() == "mine\n"
    monkeypatch.setattr(sys, "argv", ["ablate.py", f"out={tmp_path / 'out'}", "seed=1", *TINY])
    with pytest.raises(SystemExit) as ended:
        ablate.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1 and f"runs already, as process {other.pid}, and is left alone: {cell}" in said
    assert [path.name for path in cell.iterdir()] == [".lock"]  # nothing was started
    other.communicate("")


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    from recipes import ablate

    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["ablate.py", f"out={tmp_path / 'file' / 'out'}", "seed=1", *TINY])
    with pytest.raises(SystemExit) as ended:
        ablate.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and "is a file" in said and said.count("\n") == 1, said


def children(pid):
    """But multiprocessing's own, which cleans up behind the others."""
    found = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in found if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.slow
def test_a_killed_cell_does_not_stop_the_others_and_goes_on_later(tmp_path):
    out = tmp_path / "out"
    arguments = [f"out={out}", "seed=1,2", "env.num_envs=8", "loss.minibatch_frames=96", "checkpoint.every_frames=192"]
    arguments += ["total_frames=7680"]
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True)
    first = out / "all" / "seed=1"
    wait_for(lambda: list(first.glob("checkpoints/step-*")), process, "a checkpoint")
    (child,) = children(process.pid)
    os.kill(child, signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1 and f"did not finish: {first}, exit code -9" in errors
    assert (out / "all" / "seed=2" / "summary.json").exists() and not (first / "summary.json").exists()
    done = run(*arguments)
    assert done.returncode == 0 and "2 cells, 1 finished" in done.stdout
    assert "continuing" in (first / "log.txt").read_text()


@pytest.mark.slow
def test_no_cell_outlives_its_sweep(tmp_path):
    """Not even where the sweep is killed: the cell saves where its iteration began, and ends."""
    cell = tmp_path / "out" / "all" / "seed=1"
    arguments = [f"out={tmp_path / 'out'}", "seed=1", "env.num_envs=8", "loss.minibatch_frames=96"]
    arguments += ["total_frames=1_000_000", "checkpoint.every_frames=1_000_000", "eval.every_frames=1_000_000"]
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: "train/return" in _read(cell / "metrics.csv"), process, "the first iteration")
    (child,) = children(process.pid)
    process.kill()
    process.communicate()
    wait_for(lambda: not Path(f"/proc/{child}").exists(), what="the end of the cell")
    assert "where the iteration began is kept in" in (cell / "log.txt").read_text()
    assert max(path.name for path in (cell / "checkpoints").glob("step-*")) > f"step-{0:012d}.torchrl"


def _read(path):
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_stopping_it_stops_the_running_cell_and_the_same_command_goes_on(number, tmp_path):
    out = tmp_path / "out"
    arguments = [f"out={out}", "seed=1,2", "env.num_envs=8", "loss.minibatch_frames=96", "checkpoint.every_frames=192"]
    process = subprocess.Popen(
        command(*arguments, "total_frames=1_000_000"), stderr=subprocess.PIPE, text=True, preexec_fn=hear_all_signals
    )
    wait_for(lambda: list((out / "all" / "seed=1").glob("checkpoints/step-*")), process, "a checkpoint")
    (child,) = children(process.pid)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and "the same command continues" in errors
    assert not Path(f"/proc/{child}").exists()
    assert not (out / "all" / "seed=2").exists()
    kept = max(int(path.stem.split("-")[1]) for path in (out / "all" / "seed=1").glob("checkpoints/step-*"))
    done = run(*arguments, f"total_frames={kept + 192}")
    assert done.returncode == 0 and all((out / "all" / f"seed={seed}" / "summary.json").exists() for seed in (1, 2))
    assert "continuing" in (out / "all" / "seed=1" / "log.txt").read_text()
