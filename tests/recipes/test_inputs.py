"""Whatever a command line asks for that cannot be: one sentence, exit code 2, nothing written, and no work begun."""

import os
import sys

import pytest

from recipes import ablate, benchmark, evaluate, export, plot
from recipes.configuration.compose import run_recipe
from recipes.configuration.rules import validate
from recipes.inside import play as look_inside
from tests.recipes.runs import ROOT, TINY, train_here

LONG = "x" * 300
DEEP = "[" * 3000
DIGITS = "9" * 5000
HUGE = "9" * 30
DAMAGED = {
    "nul": b"frames,metric,value\n1,train/success,0.5\n\x00,a,\n",
    "column": b"frames,metric\n1,train/success\n",
    "words": b"frames,metric,value\nmany,train/success,0.5\n",
    "short": b"frames,metric,value\n1,train/success\n2,train/success,1\n",
    "latin": b"frames,metric,value\n1,train/\xff,0.5\n",
    "field": b"frames,metric,value\n1,train/success," + b"9" * 200_000 + b"\n",
    "frames": b"frames,metric,value\n" + b"9" * 30 + b",train/success,1\n",
    "header": b"frames,metric,value\n",
    "nothing": b"",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, and with much that is none."""
    place = tmp_path_factory.mktemp("place")
    train_here(place / "run", "total_frames=192", *TINY)
    (place / "run" / "checkpoints" / "step-000000000192.torchrl").rename(place / "agent.torchrl")
    for name, content in DAMAGED.items():
        (place / name).mkdir()
        (place / name / "metrics.csv").write_bytes(content)
    os.mkfifo(place / "fifo")
    (place / "empty").touch()
    (place / "folder").mkdir()
    (place / "piped").mkdir()
    os.mkfifo(place / "piped" / "metrics.csv")
    (place / "dangling").symlink_to("nowhere")
    (place / "hidden").mkdir()
    (place / "hidden" / "checkpoints").symlink_to("/proc/self/nowhere")
    os.link(place / "agent.torchrl", place / "twin.torchrl")
    (place / "link.torchrl").symlink_to("agent.torchrl")
    return place


def start(recipe, *arguments):
    """The recipe's own main in this process."""
    if recipe == "plot":
        plot.main(arguments)
    elif recipe == "ablate":
        ablate.main()
    elif recipe == "look_inside":
        run_recipe(look_inside.run, config_name=recipe, check=look_inside.check)
    elif recipe in ("evaluate", "export", "benchmark"):
        module = {"evaluate": evaluate, "export": export, "benchmark": benchmark}[recipe]
        run_recipe(module.run, config_name=recipe, check=module.check)
    else:
        run_recipe(lambda config: pytest.fail("the training began"), config_name=recipe, check=validate)


READING = [
    ("missing", "", "checkpoint is '' but must be not empty"),
    ("stands for missing", "???", "checkpoint is ???"),
    ("nowhere", "nowhere", "nothing is there"),
    ("a long name", LONG, "File name too long"),
    ("a long path", "a/" * 3000, "File name too long"),
    ("a device", "/dev/zero", "'/dev/zero', a device"),
    ("a pipe", "fifo", "'fifo', a device"),
    ("unreadable", "/proc/self/mem", "cannot be read"),
    ("no such home", "~nobody_has_this_name/run", "no such home folder"),
    ("an empty file", "empty", "is not a checkpoint"),
    ("a folder", "folder", "a folder without checkpoints/"),
    ("a link to nowhere", "dangling", "'dangling', a link to nowhere"),
    ("checkpoints that are not mounted", "hidden", "a folder without checkpoints/"),
    ("an interpolation", "${nonexistent}", "nonexistent"),
    ("the environment", "${oc.env:NOT_SET_ANYWHERE}", "NOT_SET_ANYWHERE"),
    ("brackets", "[1,2]", "'[1,2]' but nothing is there"),
    ("very deep", DEEP, "nothing is there" if len(DEEP) < 255 else "File name too long"),
    ("many digits", "9" * 200, "nothing is there"),
    ("a zero byte", "a\0b", "no zero byte"),
    ("no character", "\udcff", "nothing is there"),
]
WRITING = [
    ("stands for missing", "???", "out is ???"),
    ("a long name", LONG, "File name too long"),
    ("below a file", "empty/x", "empty is a file"),
    ("a pipe", "fifo", "device"),
    ("no such place", "/proc/x/y", "nothing can be written there"),
    ("no such home", "~nobody_has_this_name/x", "no such home folder"),
    ("below a link to nowhere", "dangling/x", "link to nowhere"),
    ("an interpolation", "${nonexistent}", "nonexistent"),
    ("a zero byte", "a\0b", "no zero byte"),
]
ROWS = {
    **{
        f"{recipe}: checkpoint is {name}": (recipe, [f"checkpoint={text}", "out=out.torchrl"], said)
        for recipe in ("evaluate", "look_inside", "export")
        for name, text, said in READING
    },
    **{
        f"{recipe}: out is {name}": (recipe, [*before, f"out={text}"], said)
        for recipe, before in (
            ("evaluate", ["checkpoint=run", "num_workers=0"]),
            ("look_inside", ["checkpoint=run", "num_workers=0"]),
            ("export", ["checkpoint=run"]),
            ("benchmark", ["parts=[update]"]),
            ("ablate", ["seed=1"]),
        )
        for name, text, said in WRITING
    },
    **{
        f"toy_ppo: run_dir is {name}": ("toy_ppo", [f"run_dir={text}"], said)
        for name, text, said in WRITING
        if name not in ("stands for missing", "an interpolation", "below a link to nowhere")
        and not text.startswith("/proc")  # the lock's own attempt, see test_compose.py
    },
    "evaluate: no argument": ("evaluate", [], "checkpoint is missing"),
    "look_inside: no argument": ("look_inside", [], "checkpoint is missing"),
    "export: no argument": ("export", [], "checkpoint is missing"),
    "export: nowhere to": ("export", ["checkpoint=run"], "out is missing"),
    "export: a folder": ("export", ["checkpoint=run", "out=folder"], "a folder: give the file to write"),
    "export: its input": ("export", ["checkpoint=agent.torchrl", "out=./agent.torchrl"], "the checkpoint itself"),
    "export: a link to it": ("export", ["checkpoint=agent.torchrl", "out=link.torchrl"], "the checkpoint itself"),
    "export: its input by a link": ("export", ["checkpoint=link.torchrl", "out=agent.torchrl"], "checkpoint itself"),
    "export: its other name": ("export", ["checkpoint=agent.torchrl", "out=twin.torchrl"], "the checkpoint itself"),
    "export: another checkpoint": ("export", ["checkpoint=run", "out=agent.torchrl"], "that a run continues from"),
    "evaluate: an added key": ("evaluate", ["+a=1"], "not added or removed"),
    "evaluate: a removed key": ("evaluate", ["~checkpoint"], "not added or removed"),
    "evaluate: an option": ("evaluate", ["--unknown"], "--unknown"),
    "evaluate: a package": ("evaluate", ["checkpoint@x=1"], "not added or removed"),
    "evaluate: an empty argument": ("evaluate", [""], "key=value"),
    "evaluate: no key": ("evaluate", ["=x"], "unknown key ''"),
    "evaluate: hydra's own": ("evaluate", ["hydra.run.dir=x"], "hydra.run.dir"),
    "evaluate: many digits": ("evaluate", [f"seed={DIGITS}"], "(5005 characters)"),
    "evaluate: very deep": ("evaluate", [f"seed={DEEP}"], "(3005 characters)"),
    "evaluate: a large seed": ("evaluate", ["checkpoint=run", f"seed={HUGE}"], "from 0 to 2**63 - 1"),
    "evaluate: impatient": ("evaluate", ["checkpoint=run", "worker_timeout=1e-9"], "from 0.1 to 1_000_000 seconds"),
    "evaluate: too patient": ("evaluate", ["checkpoint=run", "worker_timeout=1e300"], "from 0.1 to 1_000_000 seconds"),
    "evaluate: forever": ("evaluate", ["checkpoint=run", "worker_timeout=inf"], "finite"),
    "evaluate: a missing split": ("evaluate", ["split=???"], "split is ???"),
    "evaluate: a huge trial": (
        "evaluate",
        ["checkpoint=run", "adaptation_episodes=1000000000000"],
        "40 TB are for the memory of a trial",
    ),
    "evaluate: a huge horizon": ("evaluate", ["checkpoint=run", f"horizon={HUGE}"], "over 1000 EB"),
    "evaluate: a huge seed of goals": ("evaluate", ["checkpoint=run", f"benchmark_seed={HUGE}"], "benchmark_seed"),
    "evaluate: stages of the toy": ("evaluate", ["checkpoint=run", "stages=true"], "toy is not of Meta-World"),
    "evaluate: a device": ("evaluate", ["device=cuda:99999999999999999999"], "device is"),
    "look_inside: a large seed": ("look_inside", ["checkpoint=run", f"seed={HUGE}"], "from 0 to 2**63 - 1"),
    "look_inside: huge trials": (
        "look_inside",
        ["checkpoint=run", "trials_per_goal=1000000000000"],
        "outcomes of 1000000000000",
    ),
    "look_inside: a huge trial": ("look_inside", ["checkpoint=run", "episodes=1000000000000"], "memory of a trial"),
    "benchmark: nested parts": ("benchmark", ["parts=[[update]]"], "parts is [['update']]"),
    "benchmark: a table of parts": ("benchmark", ["parts=[{a:1}]"], "parts is [{'a': 1}]"),
    "benchmark: huge lanes": ("benchmark", ["lanes=[99999999999999]"], "environments (num_envs, recipe_lanes, lanes)"),
    "benchmark: more workers than lanes": ("benchmark", ["num_workers=21"], "num_workers is 21 but must be at most 20"),
    "benchmark: huge threads": ("benchmark", [f"threads={HUGE}"], "from 0 to 1024"),
    "ablate: no step": ("ablate", ["seed=range(0,3,0)"], "that ends"),
    "ablate: a negative step": ("ablate", ["seed=range(0,3,-1)"], "that ends"),
    "ablate: no end": ("ablate", ["seed=range(0,1e400)"], "that ends"),
    "ablate: far too many": ("ablate", ["seed=range(0,1000000000000)"], "more than 10,000 cells"),
    "ablate: too many together": ("ablate", ["encoder.window=range(1,1000)", "seed=range(1,1000)"], "10,000 cells"),
    "ablate: a key twice": ("ablate", ["seed=1,2", "seed=3"], "set the same key: give it once"),
    "ablate: files": ("ablate", ["seed=glob(*)"], "a pattern of files"),
    "ablate: an empty choice": ("ablate", ["seed=choice()"], "cannot read"),
    "ablate: very deep": ("ablate", [f"seed={DEEP}"], "(3005 characters)"),
    "ablate: an added key": ("ablate", ["+a=1"], "+a"),
    "ablate: an interpolation": ("ablate", ["encoder.window=1,${nonexistent}"], "nonexistent"),
    "ablate: a cell of terabytes": ("ablate", ["collector.grow_to=1,1000000000"], "collector.grow_to=1000000000"),
    "ablate: a missing metric": ("ablate", ["metric=???"], "metric is ???"),
    "ablate: no factory": ("ablate", ["env.name=os.system", "env.num_workers=0"], "no environment factory"),
    "plot: no argument": ("plot", [], "required: RUN_DIR, --out"),
    "plot: an option": ("plot", ["run", "--out", "x.png", "--unknown"], "--unknown"),
    "plot: a group without a name": ("plot", ["run", "--out", "x.png", "--compare"], "--compare"),
    "plot: a group without a run": ("plot", ["run", "--out", "x.png", "--compare", "a"], "--compare a names no run"),
    "plot: no number": ("plot", ["run", "--out", "x.png", "--smooth", DIGITS], "--smooth"),
    "plot: no frames": ("plot", ["run", "--out", "x.png", "--by-episode", "train", "--last", "0"], "--last is 0"),
    "plot: nowhere": ("plot", ["nowhere", "--out", "x.png"], "does not exist"),
    "plot: a long name": ("plot", [LONG, "--out", "x.png"], "File name too long"),
    "plot: a pipe": ("plot", ["piped", "--out", "x.png"], "is a device"),
    "plot: no such home": ("plot", ["~nobody_has_this_name/x", "--out", "x.png"], "no such home folder"),
    "plot: a file": ("plot", ["empty", "--out", "x.png"], "does not exist"),
    "plot: unknown format": ("plot", ["run", "--out", "x.xyz"], "but its name must end in ."),
    "plot: no format": ("plot", ["run", "--out", "x"], "but its name must end in ."),
    "plot: LaTeX": ("plot", ["run", "--out", "x.pgf"], "but its name must end in ."),
    "plot: out is a folder": ("plot", ["run", "--out", "folder"], "must end in"),
    "plot: out is a long name": ("plot", ["run", "--out", f"{LONG}.png"], "File name too long"),
    "plot: out is below a file": ("plot", ["run", "--out", "empty/x.png"], "empty is a file"),
    "plot: out is nowhere": ("plot", ["run", "--out", "/proc/x/y.png"], "/proc/x"),
    "plot: out of nobody": ("plot", ["run", "--out", "~nobody_has_this_name/x.png"], "no such home folder"),
    "plot: a broken title": ("plot", ["run", "--out", "x.png", "--title", r"$\frac{1$"], "no TeX to Matplotlib"),
    "plot: a broken label": ("plot", ["run", "--out", "x.png", "--label", r"$\undefined$"], "no TeX to Matplotlib"),
    **{
        f"plot: damaged, {name}": ("plot", [name, "--out", "x.png"], said)
        for name, said in {
            **dict.fromkeys(("nul", "column", "words", "field", "frames"), "is damaged: line"),
            "short": "is damaged: line 2",
            "latin": "its byte 28 is no UTF-8",
            "header": "there are none",
            "nothing": "there are none",
        }.items()
    },
    **{
        f"toy_ppo: {name}": ("toy_ppo", overrides, said)
        for name, (overrides, said) in {
            "a function of the system": (["env.name=os.system", "env.num_workers=0"], "no environment factory"),
            "a function of nothing": (["env.name=os.getcwd", "env.num_workers=0"], "no environment factory"),
            "a function of other things": (["env.name=json:dumps", "env.num_workers=0"], "no environment factory"),
            "a missing name": (["env.name=???"], "env.name is ???"),
            "terabytes of batches": (["collector.grow_to=1000000000"], "collector.grow_to=1000000000"),
            "terabytes of memory": (
                ["memory.scope=lane", "memory.max_episodes=1000000000"],
                "memory.max_episodes=1000000000",
            ),
            "terabytes of lanes": (["env.num_envs=1000000000", f"total_frames={HUGE}"], "stored frames"),
            "terabytes of weights": (["encoder.d_model=1000000"], "encoder.d_model=1000000"),
            "terabytes of windows": (["encoder.window=1000000000"], "encoder.window=1000000000"),
            "terabytes of slots": (
                ["memory.strategy=uniform", "encoder.episodes=1000000000"],
                "encoder.episodes=1000000000",
            ),
            "terabytes of layers": (["encoder.intra_layers=1000000000"], "encoder.intra_layers=1000000000"),
            "terabytes of an MLP": (["encoder=mlp", "encoder.mlp_layers=1000000000"], "encoder.mlp_layers=1000000000"),
            "terabytes of a trial": (["eval.adaptation_episodes=1000000000000"], "1000000000001 episodes of 6 steps"),
            "terabytes of workers": (
                ["env.num_envs=1000000", "env.num_workers=1000000", f"total_frames={HUGE}"],
                "env.num_workers=1000000 worker processes",
            ),
            "impatient": (["env.worker_timeout=1e-9"], "from 0.1 to 1_000_000 seconds"),
            "infinite": (["optim.lr=inf"], "optim.lr is inf but must be finite"),
            "many digits": ([f"seed={DIGITS}"], "(5005 characters)"),
            "very deep": ([f"seed={DEEP}"], "(3005 characters)"),
            "of itself": (["seed=${seed}"], ""),
            "of a group": (["env=${env}"], "env is a group"),
            "of the environment": (["seed=${oc.env:HOME}"], "seed is "),
            "a sweep": (["seed=range(0,3,0)"], "asks for a sweep"),
            "a device": (["resume=/dev/zero"], "a device is there"),
            "a pipe": (["resume=fifo"], "a device is there"),
            "a folder": (["resume=folder"], "a folder is there"),
        }.items()
    },
}


def contents(folder):
    return sorted((path.as_posix(), path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*")
                  if not path.is_dir())  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_one_sentence_and_nothing_left(row, place, monkeypatch, capsys):
    recipe, arguments, said = ROWS[row]
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "recipes" / f"{recipe}.py"), *arguments])
    before, folders = contents(place), {path for path in place.rglob("*") if path.is_dir()}
    with pytest.raises(SystemExit) as ended:
        start(recipe, *arguments)
    out, error = capsys.readouterr()
    assert ended.value.code == 2 and out == ""
    assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1, error
    assert said in error and "Traceback" not in error, error
    assert contents(place) == before and {path for path in place.rglob("*") if path.is_dir()} == folders


def test_the_table_is_of_every_recipe():
    shared = {"toy_ppo", "evaluate", "look_inside", "export", "plot", "ablate", "benchmark"}
    assert {recipe for recipe, _, _ in ROWS.values()} == shared and len(ROWS) >= 60
