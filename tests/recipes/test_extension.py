"""A strategy, an encoder with a setting of its own and an environment with tasks, goals and success, all from outside.

The recipes train, evaluate and look inside as with the built-in ones, and nothing but the user lets them be imported.
"""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from htrmrl_torchrl import HTrMRLAgent, evaluate, make_env
from htrmrl_torchrl.agent.networks import load_networks
from htrmrl_torchrl.evaluation import EvaluationReport
from htrmrl_torchrl.faults import UserError
from recipes import evaluate as evaluation
from recipes import export
from recipes.configuration import compose, rules
from recipes.inside import play as look_inside
from tests.recipes.runs import here, metrics, train_here

LAB = '''
import numpy as np
import torch
from torchrl.modules import MLP

from htrmrl_torchrl import keys
from htrmrl_torchrl.encoders.contract import ContextEncoder
from htrmrl_torchrl.envs.lanes import Benchmark, LaneKind, Lanes

open({mark!r}, "w").close()


class Firsts:
    """The first window of the first episodes, one each."""

    one_per_episode = True

    def __call__(self, past, *, slots, window, rng):
        return [(episode, 0) for episode in range(min(slots, len(past)))]


class Needy(Firsts):
    def __init__(self, needed): ...


class Mean(ContextEncoder):
    """An MLP on the newest token and the mean of those of the windows that are shown."""

    def __init__(self, *, depth: int = 1, shape: str | None = None, **others):
        super().__init__(**others)
        if depth > 5:
            raise ValueError("depth must be at most 5")
        self.mlp = MLP(2 * self.token_dim, self.d_model, depth=depth, num_cells=self.d_model)

    def forward(self, tensordict):
        context = tensordict.get(keys.CONTEXT)
        newest, past = (self.tokens(context.get(name)[..., -1, :]) for name in ("current", "past"))
        held = context.get("slot_mask").unsqueeze(-1)
        mean = (past * held).sum(-2) / held.sum(-2).clamp_min(1)
        return tensordict.set(self.out_keys[0], self.mlp(torch.cat([newest, mean], -1)))


class GuessLanes(Lanes):
    """A number to guess: ``near`` below zero, ``far`` above; other ones in each split."""

    obs_dim, action_low, action_high = 2, np.array([-1.0], np.float32), np.array([1.0], np.float32)
    numbers = {{"train": [0.1, 0.5, 0.9], "val": [0.2, 0.4, 0.6], "test": [0.3, 0.7, 0.8]}}

    def __init__(self, split, num_lanes):
        self.num_lanes, self._split = num_lanes, split
        self._number, self._seen = np.zeros(num_lanes, np.float32), np.zeros((num_lanes, 2), np.float32)

    def reset(self, lanes, tasks, goals, draws=None):
        signs = np.where(tasks == 0, 1.0, -1.0)
        self._number[lanes] = signs * np.array(self.numbers[self._split])[goals]
        self._seen[lanes] = 0.0
        return self._seen[lanes]

    def step(self, actions):
        off = np.abs(actions[:, 0] - self._number)
        self._seen = np.stack([actions[:, 0], off], -1).astype(np.float32)
        return self._seen.copy(), -off, off < 0.2


def lanes(split, horizon, benchmark_seed):
    from functools import partial

    return LaneKind(partial(GuessLanes, split), GuessLanes.obs_dim, GuessLanes.action_low, GuessLanes.action_high)


GUESS = Benchmark(
    name="guess", train=("far", "near"), test=("far", "near"), num_goals=3, lanes=lanes, default_horizon=4,
    needs_opengl=False,
)
'''
YAML = """kind: lab:Mean
window: 2
episodes: 3
d_model: 8
depth: 2
shape: null
"""
TRUST = ("lab:GUESS", "lab:Mean", "lab:Firsts")
GIVEN = f"trust=[{','.join(TRUST)}]"
# 4 lanes * 3 episodes * 4 steps = 48 frames an iteration
RUN = [
    "env.name=lab:GUESS", "env.num_envs=4", "env.episodes_per_trial=3", "env.horizon=4", "encoder=mine",
    "memory.strategy=lab:Firsts", "loss.minibatch_frames=24", "loss.segment_frames=4", "loss.epochs=1",
    "eval.every_frames=48", "eval.goals_per_task=3", "eval.adaptation_episodes=1", "checkpoint.every_frames=48",
]  # fmt: skip
SMALL = ["num_workers=0", "num_envs=6", "goals_per_task=2"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A module that leaves a mark where it is imported, a folder of configurations with one more encoder, and a run."""
    folder = tmp_path_factory.mktemp("lab")
    mark = folder / "imported"
    (folder / "lab.py").write_text(LAB.format(mark=str(mark)))
    shutil.copytree(compose.CONFIG_DIR, folder / "configs")
    (folder / "configs" / "encoder" / "mine.yaml").write_text(YAML)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(compose, "CONFIG_DIR", folder / "configs")
        train_here(folder / "run", *RUN, "encoder.depth=3", "total_frames=96")
        assert mark.exists()
        yield folder, mark
    sys.modules.pop("lab", None)


@pytest.fixture
def forgotten(lab):
    """The run's folder and its best checkpoint, as in a process that has not imported the module."""
    folder, mark = lab
    sys.modules.pop("lab", None)
    mark.unlink(missing_ok=True)
    (best,) = (folder / "run" / "checkpoints").glob("best-*")
    return folder / "run", best, mark


def test_it_trains_and_the_best_checkpoint_is_chosen_on_val(lab):
    folder, _ = lab
    said = {name: float(value) for _, name, value in metrics(folder / "run")}
    for split in ("val", "test"):
        assert {f"eval/{split}_success", f"eval/{split}_success/near", f"eval/{split}_success/far"} <= {*said}
    assert "train/success/near" in said
    assert abs(said["ppo/first_minibatch_ratio"] - 1) <= 1e-5
    rows = metrics(folder / "run")
    scores = {at: float(value) for at, name, value in rows if name == "eval/val_success"}
    (best,) = (folder / "run" / "checkpoints").glob("best-*")
    assert int(best.stem.partition("-")[2]) == max(scores, key=lambda at: (scores[at], -at))


def test_the_same_command_goes_on(lab, tmp_path):
    folder, _ = lab
    shutil.copytree(folder / "run", tmp_path / "run")
    train_here(tmp_path / "run", *RUN, "encoder.depth=3", "total_frames=144")
    train_here(tmp_path / "straight", *RUN, "encoder.depth=3", "total_frames=144")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "straight")


def test_a_checkpoint_imports_nothing_that_is_not_trusted(forgotten):
    _, best, mark = forgotten
    for trust, missing in (((), "lab:Mean"), (("lab:Mean",), "lab:Firsts"), (("lab:Firsts", "lab"), "lab:Mean")):
        for load in (load_networks, HTrMRLAgent.from_checkpoint):
            with pytest.raises(ValueError, match=rf"{best} names code .* {missing}, .* pass trust=\['{missing}'\]"):
                load(best, trust=trust)
    with pytest.raises(ValueError, match="names code that is not of this package"):
        evaluate(best, "toy")
    assert not mark.exists() and "lab" not in sys.modules
    networks = load_networks(best, trust=TRUST)
    assert mark.exists()
    assert type(networks.memory.strategy).__name__ == "Firsts" and type(networks.encoder).__name__ == "Mean"
    assert len([m for m in networks.encoder.mlp if hasattr(m, "weight")]) == 4  # depth=3 of the command line


def test_the_library_evaluates_it(forgotten):
    folder, best, mark = forgotten
    report = evaluate(best, "lab:GUESS", goals_per_task=3, adaptation_episodes=1, trust=TRUST)
    assert report.tasks == ["far", "near"] and report.success.shape == (1, 6, 2) and report.has_success
    sys.modules.pop("lab")
    mark.unlink()
    for path in (folder / "evaluations").glob("*.json"):  # a file is read without what it names
        read = EvaluationReport.load(path)
        assert read.benchmark == "lab:GUESS" and read.has_success and read.headline == read.success_rate
    assert not mark.exists()


@pytest.mark.parametrize(
    ("recipe", "name", "first"),
    [
        (evaluation, "evaluate", "lab:GUESS"),
        pytest.param(look_inside, "look_inside", "lab:Mean", marks=pytest.mark.slow),
    ],
)
def test_recipes_ask_for_trust_and_then_work(recipe, name, first, forgotten, monkeypatch, capsys, tmp_path):
    run, _, mark = forgotten
    start = here(monkeypatch, capsys, recipe, config_name=name)
    arguments = [f"checkpoint={run}", f"out={tmp_path}", *SMALL]
    for given in ("seed=0", "trust=[lab]", "trust=[lab:Firsts]"):
        out, error, code = start(*arguments, given)
        assert (out, code) == ("", 2) and error.count("\n") == 1
        assert f"does not import it unless you trust that code: pass trust=['{first}']" in error or "[lab]" in given
        assert not mark.exists() and "lab" not in sys.modules
    few = ["looks=2", "trials_per_goal=1", "episodes=2"] if recipe is look_inside else []
    out, error, code = start(*arguments, GIVEN, *few)
    assert code == 0 and mark.exists(), error
    assert any(path.suffix in (".json", ".html") for path in tmp_path.iterdir())


def test_worker_processes_play_it_alike(lab):
    played = []
    for workers in (0, 2):
        env = make_env("lab:GUESS", split="val", num_envs=4, episodes_per_trial=2, num_workers=workers)
        env.set_seed(0)
        torch.manual_seed(0)
        played.append(env.rollout(8, break_when_any_done=False))
        env.close()
    assert torch.equal(played[0]["next", "reward"], played[1]["next", "reward"])
    assert torch.equal(played[0]["next", "success"], played[1]["next", "success"])


def test_an_export_imports_nothing(forgotten, monkeypatch, capsys, tmp_path):
    run, _, mark = forgotten
    start = here(monkeypatch, capsys, export, config_name="export")
    assert start(f"checkpoint={run}", f"out={tmp_path / 'agent.torchrl'}")[2] == 0
    assert not mark.exists()
    assert load_networks(tmp_path / "agent.torchrl", trust=TRUST).encoder.window == 2


def test_three_places_make_a_setting_of_a_network(lab, monkeypatch, tmp_path):
    """The signature and the YAML of `lab`; and, where its range is to be known before anything is built, a rule."""
    wrong = {
        "encoder.depth=two": "encoder.depth is 'two' but must be an integer",
        "encoder.depth=6": "encoder.kind is lab:Mean: depth must be at most 5",
        "encoder.shape=3": "encoder.shape is 3 but must be of str",
        "encoder.width=3": "unknown key 'encoder.width'",
        "encoder.episodes=4": "at most 3 with memory.strategy=lab:Firsts",
    }
    for override, said in wrong.items():
        with pytest.raises(UserError, match=said):
            compose.load_config("toy_ppo", [*RUN, override, f"run_dir={tmp_path}"])
    assert compose.load_config("toy_ppo", [*RUN, "encoder.depth=0", f"run_dir={tmp_path}"]).encoder.depth == 0
    monkeypatch.setitem(rules.RANGES, "depth", rules.at_least(1))
    with pytest.raises(UserError, match=r"encoder\.depth is 0 but must be at least 1"):
        compose.load_config("toy_ppo", [*RUN, "encoder.depth=0", f"run_dir={tmp_path}"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["memory.strategy=lab:Nothing"], "memory.strategy is lab:Nothing: 'lab:Nothing': lab has no 'Nothing'"),
        (["memory.strategy=nowhere:Firsts"], "there is no module 'nowhere'"),
        (["memory.strategy=lab:Needy"], "cannot be built without arguments"),
        (["memory.strategy=lab:__name__"], "is of type str, but a window strategy must be callable"),
        (["encoder.kind=lab:Firsts"], "'lab:Firsts' is neither a ContextEncoder nor an EncoderKind"),
        (["encoder.kind=lab:Nothing"], "encoder.kind is lab:Nothing: 'lab:Nothing': lab has no 'Nothing'"),
        (["eval.goals_per_task=4"], "must be at most 3, the goals that lab:GUESS has"),
        (["env.name=lab:np"], "is module, neither a Benchmark nor a factory"),
    ],
)
def test_what_is_named_wrongly_ends_in_one_sentence(overrides, said, lab, tmp_path):
    with pytest.raises(UserError, match=said):
        compose.load_config("toy_ppo", [*RUN, *overrides, f"run_dir={tmp_path}"])


def test_a_kind_may_be_a_plain_key_beside_shipped_ones(lab, tmp_path):
    """What the encoder has no use for is not read; what no network has is refused."""
    overrides = ["encoder=htrmrl_toy" if o == "encoder=mine" else o for o in RUN]
    config = compose.load_config("toy_ppo", [*overrides, "encoder.kind=lab:Mean", f"run_dir={tmp_path}"])
    assert config.encoder.kind == "lab:Mean" and "intra_layers" in config.encoder
    folder, _ = lab
    (folder / "configs" / "encoder" / "misspelt.yaml").write_text(YAML.replace("depth", "dephth"))
    with pytest.raises(UserError, match=r"'dephth' is no setting of the networks; they have .*depth"):
        compose.load_config("toy_ppo", [*RUN, "encoder=misspelt", f"run_dir={tmp_path}"])


def test_the_path_of_a_built_in_benchmark_is_that_benchmark(forgotten):
    """The same numbers under another name."""
    from tests.helpers import networks_for_toy

    networks = networks_for_toy()
    one, other = (evaluate(networks, n, adaptation_episodes=1) for n in ("toy", "htrmrl_torchrl.envs.toy:BENCHMARK"))
    assert np.array_equal(one.returns, other.returns) and one.tasks == other.tasks
    assert json.dumps(one.task_success()) == json.dumps(other.task_success())
