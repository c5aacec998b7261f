"""The recipe as a user runs it: real processes, the real simulator, run folders, continuing, stopping."""

import csv
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from htrmrl_torchrl.checkpoints.checkpoint import read_component
from htrmrl_torchrl.faults import UserError
from recipes.configuration.compose import load_config, run_recipe
from recipes.configuration.run_folder import Start, where_to_start
from tests.checkpoints.test_archive import forged
from tests.checkpoints.test_checkpoint import Run
from tests.recipes import runs
from tests.recipes.runs import assert_no_warning_of_ours, curve, python_path, train_here

ROOT = Path(__file__).resolve().parents[2]
TINY = ["env.num_envs=8", "loss.minibatch_frames=96", "eval.every_frames=384", "checkpoint.every_frames=192"]


def command(recipe, run_dir, *overrides):
    return [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), f"run_dir={run_dir}", *overrides]


def run(recipe, run_dir, *overrides):
    """A process of its own, for what a new process may change; the others `train_here`."""
    done = subprocess.run(command(recipe, run_dir, *overrides), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_no_warning_of_ours(done.stderr)
    return done


def metrics(run_dir):
    """What `runs.metrics` reads, by frames and name."""
    return {(frames, name): value for frames, name, value in runs.metrics(run_dir)}


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "toy"  # 8 lanes * 4 episodes * 6 steps = 192 frames an iteration
    train_here(run_dir, "total_frames=768", *TINY)
    return run_dir


def test_run_folder_holds_what_is_promised(toy_run):
    names = {path.name for path in toy_run.iterdir()}
    assert {"config.yaml", "metrics.csv", "tensorboard", "checkpoints", "evaluations", "summary.json"} == names
    kinds = sorted(path.name.split("-")[0] for path in (toy_run / "checkpoints").iterdir())
    assert kinds == ["best", "step", "step"]
    summary = json.loads((toy_run / "summary.json").read_text())
    assert summary["progress"]["frames"] == 768
    assert summary["versions"]["torchrl"].startswith("0.14")


def test_metrics_have_the_documented_names(toy_run, tmp_path):
    train_here(tmp_path, "total_frames=192", "eval.memory_gain=true", *TINY)
    with_gain = {name for _, name in metrics(tmp_path)}
    logged = {name for _, name in metrics(toy_run)} | with_gain
    expected = {"train/success", "train/return", "train/success/hidden-goal", "train/success_by_episode/3"}
    expected |= {"eval/val_success", "eval/test_success", "eval/val_success/hidden-goal"}
    expected |= {f"eval/val_success_by_episode/{k}" for k in range(5)}
    expected |= {"loss/objective", "loss/critic", "loss/entropy", "ppo/kl", "ppo/clip_fraction", "ppo/entropy"}
    expected |= {"ppo/explained_variance", "ppo/first_minibatch_ratio", "memory/occupancy", "memory/window_age"}
    expected |= {"attention/intra_entropy", "attention/inter_entropy"}
    expected |= {"attention/inter_evenness/1.1", "attention/past_share", "memory/duplicates", "memory/window_distance"}
    expected |= {"eval/val_memory_gain", "eval/test_memory_gain"}
    expected |= {"eval/val_forgetting/hidden-goal", "eval/val_test_gap", "norm/gradient/intra.1", "norm/weight/critic"}
    assert expected <= logged
    glossary = documented((ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8"))
    assert not [name for name in logged if not any(pattern.fullmatch(name) for pattern in glossary)]
    with (toy_run / "metrics.csv").open(newline="") as file:
        logged = {row["metric"] for row in csv.DictReader(file)} | with_gain  # those of time and process too
    assert not [pattern.pattern for pattern in glossary if not any(pattern.fullmatch(name) for name in logged)]
    assert any(pattern.fullmatch("train/success/push-v3") for pattern in glossary)
    assert not any(pattern.fullmatch(name) for pattern in glossary for name in ("train/sucess", "memory/masked/1"))


def documented(page):
    """Names in the first column of the reference; ``<what>`` stands for any one name."""
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`(.*?)`", row)]
    return [re.compile(re.sub(r"<\w+>", r"[^/]+?", re.sub(r"[.]", r"\.", name))) for name in names]


def test_rollout_and_update_agree_in_every_iteration(toy_run):
    ratios = [float(value) for (_, name), value in metrics(toy_run).items() if name == "ppo/first_minibatch_ratio"]
    assert len(ratios) == 4
    assert all(abs(ratio - 1) <= 1e-5 for ratio in ratios)


def test_evaluations_count_every_goal_once(toy_run):
    reports = [json.loads(path.read_text()) for path in sorted((toy_run / "evaluations").glob("val_*.json"))]
    assert [report["runs"][0]["frames"] for report in reports] == [384, 768]
    for report in reports:
        pairs = sorted(zip(report["task"], report["goal"], strict=True))
        assert pairs == [(0, 0), (0, 1), (0, 2), (0, 3)]  # all of the toy
        (success,) = report["success"]
        assert [len(episodes) for episodes in success] == [5] * 4  # four to adapt, one that counts


@pytest.mark.parametrize(
    "workers", [None, pytest.param(0, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_stopped_and_continued_equals_uninterrupted(workers, toy_run, tmp_path):
    """Four iterations are two, a new start, and two; a new process changes nothing, nor do worker processes."""
    for total in (384, 768):
        if workers is None:
            train_here(tmp_path / "run", f"total_frames={total}", *TINY)
        else:
            run("toy_ppo", tmp_path / "run", f"total_frames={total}", f"env.num_workers={workers}", *TINY)
    assert metrics(tmp_path / "run") == metrics(toy_run)
    best = [read_component(max(path.glob("checkpoints/best-*")), "progress") for path in (tmp_path / "run", toy_run)]
    assert best[0] == best[1] and best[0]["best_val_success"] >= 0
    for name in ("train/return", "eval/val_success"):
        one, other = (curve(path, name) for path in (tmp_path / "run", toy_run))
        assert one == other and len(one) == (4 if name == "train/return" else 2)


def test_what_a_run_folder_says_of_its_end_is_of_this_end(tmp_path):
    train_here(tmp_path, "total_frames=384", *TINY)
    early = (tmp_path / "summary.json").read_text()
    train_here(tmp_path, "total_frames=768", *TINY)
    late = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(early)  # killed after the last checkpoint and before the summary
    train_here(tmp_path, "total_frames=768", *TINY)
    assert (
        json.loads((tmp_path / "summary.json").read_text())["metrics"]["train/return"]
        == late["metrics"]["train/return"]
    )

    reports = tmp_path / "evaluations"
    (reports / "toy_test_strict_000000000768.json").write_text("{}")  # of the user
    middle = min((tmp_path / "checkpoints").glob("step-*"))
    train_here(tmp_path, "total_frames=576", f"resume={middle}", *TINY)
    assert json.loads((tmp_path / "summary.json").read_text())["progress"]["frames"] == 576
    assert {path.name for path in reports.iterdir()} == {
        "val_000000000384.json", "test_000000000384.json", "toy_test_strict_000000000768.json",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["trmrl", "rl2", "mlp"])
def test_a_baseline_trains_with_ratio_one_and_continues_as_if_nothing_had_happened(encoder, tmp_path):
    small = [*TINY, f"encoder={encoder}", "loss.segment_frames=4"]
    for name, stops in (("straight", [768]), ("continued", [384, 768])):
        for frames in stops:
            train_here(tmp_path / name, f"total_frames={frames}", *small)
    straight = metrics(tmp_path / "straight")
    assert metrics(tmp_path / "continued") == straight
    ratios = [float(value) for (_, name), value in straight.items() if name == "ppo/first_minibatch_ratio"]
    assert len(ratios) == 4 and all(abs(ratio - 1) <= 1e-5 for ratio in ratios)
    assert len({value for (_, name), value in straight.items() if name == "loss/critic"}) == 4
    attention = {name for _, name in straight if name.startswith("attention/")}
    # One level, 4 layers of 4 heads; the others attend to nothing.
    evenness = {f"attention/intra_evenness/{layer}.{head}" for layer in range(1, 5) for head in range(1, 5)}
    assert attention == ({"attention/intra_entropy", *evenness} if encoder == "trmrl" else set())


@pytest.mark.slow
def test_with_memory_across_trials_too(tmp_path):
    lane = ["memory.scope=lane", "memory.max_episodes=6", "memory.strategy=similar", "loss.reward_norm=true", *TINY]
    train_here(tmp_path / "whole", "total_frames=768", *lane)
    train_here(tmp_path / "parts", "total_frames=384", *lane)
    train_here(tmp_path / "parts", "total_frames=768", *lane)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    occupancy = [float(value) for (_, name), value in metrics(tmp_path / "whole").items() if name == "memory/occupancy"]
    assert occupancy[0] < occupancy[1] == occupancy[2] == 1  # once there was a trial, every slot has a window


def values_of(run_dir, name):
    return [float(value) for (_, metric), value in sorted(metrics(run_dir).items()) if metric == name]


@pytest.mark.slow
def test_the_learning_rate_falls_in_a_line_and_a_continued_run_stays_on_it(tmp_path):
    linear = ["total_frames=768", "optim.schedule=linear", "optim.lr=1e-2", *TINY]
    train_here(tmp_path / "run", *linear)
    expected = [1e-2, 0.75e-2, 0.5e-2, 0.25e-2]  # the last update does not move on a rate of 0
    assert values_of(tmp_path / "run", "ppo/learning_rate") == pytest.approx(expected, rel=1e-6)
    straight = metrics(tmp_path / "run")
    middle = min((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert read_component(middle, "progress")["frames"] == 576
    train_here(tmp_path / "run", *linear, f"resume={middle}")
    assert metrics(tmp_path / "run") == straight


@pytest.mark.slow
def test_the_learning_rate_holds_the_kl_and_a_continued_run_goes_on_with_it(tmp_path):
    held = ["optim.schedule=linear", "optim.lr=1e-2", "optim.target_kl=0.01", *TINY]
    train_here(tmp_path / "whole", "total_frames=1152", *held)
    scheduled = [1e-2 * (1 - i / 6) for i in range(6)]
    rates, divergences = (values_of(tmp_path / "whole", name) for name in ("ppo/learning_rate", "ppo/kl"))
    share = 1.0
    for rate, line, kl in zip(rates, scheduled, divergences, strict=True):
        assert rate == pytest.approx(line * share, rel=1e-6)
        share = min(1.0, share * 1.1) if kl < 0.01 else share / 1.1
    assert min(divergences) < 0.01 < max(divergences)  # both ways
    middle = min((tmp_path / "whole" / "checkpoints").glob("step-*"))
    assert read_component(middle, "progress")["rate_share"] < 1
    straight = metrics(tmp_path / "whole")
    train_here(tmp_path / "whole", "total_frames=1152", *held, f"resume={middle}")
    assert metrics(tmp_path / "whole") == straight


@pytest.mark.slow
def test_batches_grow_and_a_continued_run_goes_on_with_its_own(tmp_path):
    growing = ["total_frames=1536", "collector.grow_to=3", "collector.grow_over=768", *TINY]
    train_here(tmp_path / "run", *growing)
    straight = metrics(tmp_path / "run")
    # One batch of 192 frames until 384, two until 768, then three.
    assert sorted({frames for frames, _ in straight}) == [192, 384, 768, 1344, 1920]
    middle = min((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert read_component(middle, "progress")["frames"] == 1344
    train_here(tmp_path / "run", *growing, f"resume={middle}")
    assert metrics(tmp_path / "run") == straight


def test_the_learning_rate_is_what_adam_steps_with(toy_run, tmp_path):
    """The first updates have the same rate, so the second batches are the same; the third ones show the lower rate."""
    train_here(tmp_path / "run", "total_frames=768", "optim.schedule=linear", *TINY)
    constant, linear = (values_of(path, "train/return") for path in (toy_run, tmp_path / "run"))
    assert constant[:2] == linear[:2] and constant[2:] != linear[2:]


def test_normalised_rewards_are_learned_from_and_not_shown(toy_run, tmp_path):
    train_here(tmp_path / "run", "total_frames=384", "loss.reward_norm=true", *TINY)
    plain, scaled = (values_of(path, "train/return") for path in (toy_run, tmp_path / "run"))
    assert plain[0] == scaled[0] and plain[1] != scaled[1]


def test_an_update_ends_early_where_the_policy_has_moved_too_far(toy_run, tmp_path):
    assert values_of(toy_run, "ppo/epochs") == [4.0] * 4
    # A batch of the shipped size: in a small one the estimate of the KL is noise.
    fast = ["total_frames=1536", "optim.lr=1e-2", "eval.adaptation_episodes=0"]

    def passes_and_kl(name, epochs, *limit):
        train_here(tmp_path / name, *fast, f"loss.epochs={epochs}", *limit)
        return *values_of(tmp_path / name, "ppo/epochs"), *values_of(tmp_path / name, "ppo/kl")

    # The first iteration is the same run until it stops, so the mean KL of each pass can be read off shorter ones.
    (_, first), (_, mean) = passes_and_kl("one", 1), passes_and_kl("two", 2)
    second = 2 * mean - first
    assert 0 < first < second
    assert passes_and_kl("below the first", 2, f"loss.target_kl={0.9 * first}") == (1, first)
    # Above the first and above the mean of both passes, below that of the second one.
    assert passes_and_kl("below the second", 3, f"loss.target_kl={(mean + second) / 2}") == (2, mean)


def test_evaluation_may_play_longer_episodes_than_training(tmp_path):
    train_here(tmp_path / "run", "total_frames=192", "eval.horizon=9", *TINY)
    reports = [json.loads(path.read_text()) for path in (tmp_path / "run" / "evaluations").iterdir()]
    assert [report["horizon"] for report in reports] == [9, 9]


def test_another_seed_is_another_run(toy_run, tmp_path):
    train_here(tmp_path / "run", "total_frames=192", "seed=2", *TINY)
    assert metrics(tmp_path / "run")[192, "train/return"] != metrics(toy_run)[192, "train/return"]


def test_a_key_that_is_younger_than_the_run_counts_as_what_was_before_it(tmp_path):
    path = Run(tmp_path).save()  # its configuration is {"seed": 0}
    arguments = ["seed=0", f"resume={path}"]
    assert where_to_start(load_config("base", arguments), tmp_path) == Start(path)
    with pytest.raises(UserError, match=r"of a run with policy.min_std=0.0001 and this one has policy.min_std=0.3"):
        where_to_start(load_config("base", [*arguments, "policy.min_std=0.3"]), tmp_path)


# what is asked of a run folder or a checkpoint that does not fit -> parts of the sentence
UNFIT = {
    "another learning rate": (["optim.lr=2e-3"], ["optim.lr=0.001", "this one has optim.lr=0.002", "own settings"]),
    "another width": (["encoder.d_model=16"], ["encoder.d_model=32", "this one has encoder.d_model=16"]),
    "another context": (["encoder.episodes=2"], ["encoder.episodes=4", "this one has encoder.episodes=2"]),
    "another method": (["encoder.inter_layers=0"], ["encoder.inter_layers=1", "this one has encoder.inter_layers=0"]),
    "another critic": (["critic.kind=separate"], ["critic.kind=shared", "this one has critic.kind=separate"]),
    "another encoder": (["encoder=rl2"], ["encoder.kind=htrmrl"]),
    "another evaluation": (["eval.goals_per_task=2"], ["eval.goals_per_task=4", "this one has eval.goals_per_task=2"]),
    "another seed": (["seed=2"], ["seed=1", "this one has seed=2"]),
    "another number of lanes": (["env.num_envs=16"], ["env.num_envs=8", "this one has env.num_envs=16"]),
    "another environment": (
        ["env.name=ML1:reach-v3", "eval.goals_per_task=2"],
        ["env.name=toy", "this one has env.name=ML1:reach-v3"],
    ),
    "a folder": (["resume={run}"], ["must be auto, never or the path of a checkpoint, and a folder is there"]),
    "a table": (["resume={run}/metrics.csv"], ["metrics.csv is not a checkpoint of this package", "no checksum"]),
    "a part of one": (["resume={run}/../cut.torchrl"], ["cut.torchrl is not a checkpoint", "no checksum at its end"]),
    "a changed one": (["resume={run}/../flipped.torchrl"], ["flipped.torchrl is not a", "its checksum is wrong"]),
    "other weights": (
        ["resume={run}/../other.torchrl"],
        ["cannot continue: ", "its actor does not fit", "size mismatch"],
    ),
    "a setting of the environment's": (["resume={run}/../asks.torchrl"], ["optim.lr=${oc.env:HOME} and this one"]),
    "a dangling link": (["resume={run}/../link.torchrl"], ["must be auto, never or the path of a checkpoint"]),
    "a table for a folder": (["run_dir={run}/metrics.csv"], ["metrics.csv is a file", "choose a folder"]),
}


@pytest.fixture(scope="module")
def unfit(toy_run):
    """Files beside the run that are no checkpoints of it."""
    (checkpoint,) = toy_run.glob("checkpoints/best-*")
    content = checkpoint.read_bytes()
    (toy_run.parent / "cut.torchrl").write_bytes(content[:-100])
    (toy_run.parent / "flipped.torchrl").write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    (toy_run.parent / "link.torchrl").symlink_to(toy_run.parent / "nothing")
    other = {}
    for name in ("tree.json", "tensors.bin"):  # the critic's weights where the actor's should be
        with zipfile.ZipFile(checkpoint) as archive:
            other[f"components/0000-actor/{name}"] = archive.read(f"components/0000-actor/{name}")
    tree = json.loads(other["components/0000-actor/tree.json"])
    kernel = next(value for _, value in tree["dict"] if isinstance(value, dict) and len(value["shape"]) == 2)
    kernel["shape"] = kernel["shape"][::-1] if kernel["shape"][0] != kernel["shape"][1] else [1, 1]
    other["components/0000-actor/tree.json"] = json.dumps(tree)
    forged(checkpoint, toy_run.parent / "other.torchrl", files=other)
    config = read_component(checkpoint, "config")
    config["optim"]["lr"] = "${oc.env:HOME}"
    settings = {"components/0002-config/value.json": json.dumps(config)}
    forged(checkpoint, toy_run.parent / "asks.torchrl", files=settings)
    return toy_run


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_one_sentence(case, unfit, tmp_path, monkeypatch, capsys):
    from recipes.ppo import train

    overrides, parts = UNFIT[case]
    overrides = [override.format(run=unfit) for override in overrides]
    if any("resume=" in override for override in overrides):
        overrides.append(f"run_dir={tmp_path / 'new' / 'run'}")
    elif not any("run_dir=" in override for override in overrides):
        overrides.append(f"run_dir={unfit}")
    before = {path: path.stat().st_mtime_ns for path in unfit.rglob("*") if path.is_file()}
    monkeypatch.setattr(sys, "argv", ["recipe.py", "total_frames=100_000", *TINY, *overrides])
    with pytest.raises(SystemExit, match="2"):
        run_recipe(train, config_name="toy_ppo")
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    assert all(part in said for part in parts), said
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in unfit.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_real_process_says_so_too(unfit, tmp_path):
    asked = [f"run_dir={unfit}", "optim.lr=2e-3"], [f"run_dir={tmp_path}/run", f"resume={unfit}/../flipped.torchrl"]
    for overrides in asked:
        done = subprocess.run(
            [*command("toy_ppo", tmp_path, *TINY), *overrides], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == [] and not (unfit / ".lock").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.credit=trial", "loss.bootstrap=true", "critic.kind=separate", "memory.strategy=diverse"],
        ["encoder.attention=full", "encoder.norm=tfixup", "critic.kind=single_step", "memory.strategy=best_return"],
        [
            "policy.std=dependent",
            "encoder.episodes=1",
            "encoder.inter_layers=0",
            "encoder.window=1",
            "policy.observe_token=true",
        ],
        ["loss.advantage_norm=none", "loss.value_norm=false", "memory.strategy=uniform", "loss.segment_frames=4"],
        ["encoder=rl2", "loss.credit=trial", "loss.bootstrap=true", "critic.kind=separate", "loss.segment_frames=24"],
        ["loss.reward_norm=true", "loss.bootstrap=true"],
    ],
)
def test_every_switch_trains_with_ratio_one(tmp_path, overrides):
    train_here(tmp_path / "run", "total_frames=384", *TINY, *overrides)
    ratios = [float(v) for (_, name), v in metrics(tmp_path / "run").items() if name == "ppo/first_minibatch_ratio"]
    assert len(ratios) == 2
    assert all(abs(ratio - 1) <= 1e-5 for ratio in ratios)


def test_a_foreign_environment_trains_through_a_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "my_envs.py").write_text(
        "from torchrl.envs import GymEnv, SerialEnv\n"
        "def pendulums(*, split, num_envs, seed):\n"
        "    return SerialEnv(num_envs, lambda: GymEnv('Pendulum-v1'))\n"
    )
    monkeypatch.setenv("PYTHONPATH", python_path(tmp_path))
    small = ["env.name=my_envs:pendulums", "env.num_envs=2", "env.horizon=200", "env.episodes_per_trial=1"]
    run("toy_ppo", tmp_path / "run", *small, "total_frames=400", "loss.minibatch_frames=200", "loss.segment_frames=20")
    logged = metrics(tmp_path / "run")
    assert -2000 < float(logged[400, "train/return"]) < -300
    assert abs(float(logged[400, "ppo/first_minibatch_ratio"]) - 1) <= 1e-5


WALKING = """
from torchrl.envs import SerialEnv
from tests.helpers import WALKS, Walk

def make(*, split, num_envs, seed):
    return SerialEnv(num_envs, [lambda i=i: Walk(WALKS[i], 0.3 * i) for i in range(num_envs)])
"""


def test_episodes_that_end_early_are_cut_by_batches_and_learned_from(tmp_path, monkeypatch):
    """Terminated or truncated after 1 to 9 steps, at other times in every lane."""
    (tmp_path / "walks.py").write_text(WALKING)
    monkeypatch.syspath_prepend(tmp_path)
    sizes = ["env.num_envs=3", "env.horizon=9", "env.episodes_per_trial=3", "loss.minibatch_frames=27"]
    train_here(tmp_path / "run", "env.name=walks:make", *sizes, "loss.segment_frames=3", "total_frames=243")
    ratios = values_of(tmp_path / "run", "ppo/first_minibatch_ratio")
    assert len(ratios) == 3 and all(abs(ratio - 1) <= 1e-5 for ratio in ratios)


def test_the_real_simulator_trains_and_evaluates_on_ml1(tmp_path):
    small = ["env.num_envs=4", "env.episodes_per_trial=2", "env.horizon=20", "loss.minibatch_frames=80"]
    small += ["loss.segment_frames=20", "eval.goals_per_task=2", "total_frames=160"]
    done = run("ml1_ppo", tmp_path / "run", *small)
    logged = metrics(tmp_path / "run")
    assert float(logged[160, "train/return"]) > 0
    assert re.search(r"success \d\.\d\d on held-out goals, +by episode \d\.\d\d \d\.\d\d \d\.\d\d\n", done.stdout)
    assert {"eval/val_success/reach-v3", "eval/test_success/reach-v3"} <= {name for _, name in logged}


@pytest.mark.slow
def test_learning_is_the_same_on_the_fast_and_the_official_simulator(tmp_path):
    small = ["env.num_envs=4", "env.episodes_per_trial=2", "env.horizon=60", "loss.minibatch_frames=240"]
    small += ["loss.segment_frames=20", "eval.goals_per_task=1", "total_frames=1440", "env.name=ML1:push-v3"]
    for backend in ("fast", "official"):
        train_here(tmp_path / backend, *small, f"env.backend={backend}", recipe="ml1_ppo")
    assert metrics(tmp_path / "fast") == metrics(tmp_path / "official")
    assert len({value for (_, name), value in metrics(tmp_path / "fast").items() if name == "train/return"}) == 3
