"""make_env: arguments are checked before anything is built; factories by dotted path; a real collector."""

import importlib
import textwrap

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs import check_env_specs

from htrmrl_torchrl.envs import TrialEnv, benchmarks, check_name, make_env
from htrmrl_torchrl.envs.metaworld import MetaWorldLanes

FACTORY = """
from torchrl.envs import GymEnv, SerialEnv, TransformedEnv
from htrmrl_torchrl.envs import make_env

calls = []

def pendulums(*, split, num_envs, seed, gravity=10.0):
    calls.append((split, num_envs, seed, gravity))
    env = SerialEnv(num_envs, lambda: GymEnv("Pendulum-v1", g=gravity))
    env.set_seed(seed)
    return env

def already_trials(*, split, num_envs, seed):
    return make_env("toy", split=split, num_envs=num_envs, seed=seed, episodes_per_trial=4)

def unbatched(*, split, num_envs, seed):
    return GymEnv("Pendulum-v1")

def no_environment(*, split, num_envs, seed):
    return "nothing"

constant = 3
"""


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    (tmp_path / "foreign_lab").mkdir()
    (tmp_path / "foreign_lab" / "__init__.py").touch()
    (tmp_path / "foreign_lab" / "envs.py").write_text(textwrap.dedent(FACTORY))
    monkeypatch.syspath_prepend(tmp_path)
    return "foreign_lab.envs"


@pytest.mark.parametrize("separator", [":", "."])
def test_a_foreign_factory_becomes_trials(foreign, separator):
    path = f"{foreign}{separator}pendulums"
    env = make_env(path, split="val", num_envs=3, seed=5, episodes_per_trial=2, gravity=3.0)
    import foreign_lab.envs

    assert foreign_lab.envs.calls[-1] == ("val", 3, 5, 3.0)
    check_env_specs(env)
    rows = env.rollout(600, break_when_any_done=False)
    assert rows["episode"][0, ::200].flatten().tolist() == [0, 1, 0]
    assert rows["trial_init"][0].flatten().nonzero().flatten().tolist() == [0, 400]


def test_a_factory_of_trials_is_left_alone(foreign):
    env = make_env(f"{foreign}:already_trials", num_envs=2, episodes_per_trial=2)
    assert isinstance(env, TrialEnv) and env.episodes_per_trial == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unbatched", r"batch_size \[\], expected \[2\]"),
        ("no_environment", "returned str"),
        ("constant", "neither a Benchmark nor a factory"),
        ("missing", "has no 'missing'"),
    ],
)
def test_a_factory_that_does_not_fit_is_refused(foreign, name, message):
    with pytest.raises(ValueError, match=message):
        make_env(f"{foreign}:{name}", num_envs=2)


def test_a_factory_that_lacks_something_says_what(foreign, tmp_path):
    (tmp_path / "foreign_needy.py").write_text("import foreign\n")  # its own name begins with that
    importlib.invalidate_caches()
    for name in ("foreign_needy:make", "foreign_needy.make"):
        with pytest.raises(ModuleNotFoundError, match="No module named 'foreign'"):
            make_env(name, num_envs=2)
    for name in ("foreign_lab.lost:make", "foreign_lost.envs:make"):
        with pytest.raises(ValueError, match="there is no module"):
            make_env(name, num_envs=2)


@pytest.mark.parametrize("argument", [{"horizon": 5}, {"num_workers": 2}, {"pairs": [(0, 0)]}])
def test_a_factory_takes_no_arguments_of_ours(foreign, argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        make_env(f"{foreign}:pendulums", num_envs=2, **argument)


def test_names_are_checked(foreign):
    for name in ("toy", "ML10", "ML1:reach", "custom:[reach]/[push]", f"{foreign}:pendulums"):
        check_name(name)
    for name in ("ML9", "no_such_lab.envs:factory", f"{foreign}:missing"):
        with pytest.raises(ValueError):
            check_name(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "ML100"}, "nearest known: .*ML10"),
        ({"split": "training"}, "nearest: train"),
        ({"num_envs": 0}, "num_envs .* 0"),
        ({"episodes_per_trial": 0}, "episodes_per_trial .* 0"),
        ({"horizon": 0}, "horizon .* 0"),
        ({"horizon": 501}, "at most 500.* 501"),
        ({"num_workers": -1}, "num_workers .*-1"),
        ({"num_workers": 21}, r"num_envs \(20\), received 21"),
        ({"num_workers": 1, "worker_timeout": 0}, "worker_timeout must be a number of seconds above 0, received 0"),
        ({"backend": "warp"}, "backend='warp' is unknown; choose one of fast, official"),
        ({"seed": -1}, "seed .*-1"),
        ({"benchmark_seed": -1}, "benchmark_seed .*-1"),
        ({"pairs": [(0, 0)]}, "num_envs=20 .*received 1"),
        ({"num_envs": 2, "pairs": [(0, 0), (10, 0)]}, r"\(10, 0\).*0 to 9, goals 0 to 49"),
        ({"num_envs": 2, "pairs": [(0, 0), (0, 50)]}, r"\(0, 50\)"),
        ({"gravity": 3.0}, "takes no gravity"),
    ],
)
def test_wrong_arguments_end_before_anything_is_built(arguments, message, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was built")

    monkeypatch.setattr(benchmarks, "draw_goals", refuse)
    monkeypatch.setattr(MetaWorldLanes, "__init__", refuse)
    with pytest.raises(ValueError, match=message):
        make_env(**{"name": "ML10", **arguments})
    with pytest.raises(AssertionError):  # the control: right arguments do build
        make_env("ML10")


def test_a_collector_gets_whole_trials():
    lanes, episodes, horizon = 4, 3, 6
    env = make_env("toy", num_envs=lanes, episodes_per_trial=episodes)
    frames = lanes * episodes * horizon
    for batch in Collector(env, None, frames_per_batch=frames, total_frames=3 * frames):
        assert batch.batch_size == (lanes, episodes * horizon)
        expected = torch.arange(episodes).repeat_interleave(horizon)
        assert (batch["episode"][..., 0] == expected).all()
        assert (batch["trial_init"][..., 0] == (torch.arange(episodes * horizon) == 0)).all()
        assert (batch["is_init"][..., 0] == (torch.arange(episodes * horizon) % horizon == 0)).all()
        assert (batch["goal"] == batch["goal"][:, :1]).all()
        ends = batch["next", "observation"][:, horizon - 1 : -1 : horizon]
        assert torch.equal(batch["final", "observation"][:, horizon::horizon], ends)


def test_lanes_share_one_balanced_deck():
    env = make_env("toy", num_envs=8, episodes_per_trial=1)
    goals = env.reset()["goal"].flatten()
    assert goals.bincount(minlength=4).tolist() == [2, 2, 2, 2]
