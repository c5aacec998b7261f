"""A factory's environment trains by the recipe with every encoder, or the recipe refuses it in one sentence."""

import sys

import pytest
from torchrl.envs import SerialEnv

from recipes import ppo
from recipes.configuration.compose import run_recipe
from tests import inputs
from tests.inputs import REFUSED, SAID, STEPS, WORKS, Row, noted
from tests.recipes.runs import ROOT, metrics, train_here

ENCODERS = ("htrmrl_toy", "rl2", "mlp")
LANES = 2
SMALL = [
    "env.name=tests.inputs:chosen", f"env.num_envs={LANES}", "env.episodes_per_trial=2", f"env.horizon={STEPS}",
    "memory.strategy=uniform", f"loss.minibatch_frames={STEPS}", f"loss.segment_frames={STEPS}", "loss.epochs=1",
    f"total_frames={2 * LANES * 2 * STEPS}", "encoder.d_model=8",
]  # fmt: skip


@pytest.fixture
def choose(monkeypatch):
    """Makes the factory build lanes of a row."""

    def call(row):
        lane = row.make if row.trials is None else row.in_trials
        monkeypatch.setattr(inputs, "chosen", lambda *, split, num_envs, seed: SerialEnv(num_envs, lane), raising=False)

    return call


@pytest.fixture
def refusal(monkeypatch, capsys, tmp_path):
    """What the recipe says in one line, with exit code 2 and nothing left behind."""

    def call(*overrides):
        folder = tmp_path / "run"
        arguments = [str(ROOT / "recipes" / "toy_ppo.py"), f"run_dir={folder}", *SMALL, *overrides]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            run_recipe(ppo.train, config_name="toy_ppo")
        assert ended.value.code == 2 and not folder.exists()
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return line

    return call


@pytest.mark.parametrize("encoder", [ENCODERS[0], *(pytest.param(e, marks=pytest.mark.slow) for e in ENCODERS[1:])])
@pytest.mark.parametrize("name", ["uint8 observations", "unbounded actions", "InitTracker after"])
def test_it_trains(name, encoder, choose, tmp_path):
    choose(WORKS[name])
    train_here(tmp_path, *SMALL, f"encoder={encoder}")
    ratios = [float(value) for _, metric, value in metrics(tmp_path) if metric == "ppo/first_minibatch_ratio"]
    assert len(ratios) == 2 and all(abs(ratio - 1) <= 1e-5 for ratio in ratios)


@pytest.mark.parametrize(("name", "encoder"), [(name, ENCODERS[i % 3]) for i, name in enumerate(REFUSED)])
def test_it_is_refused(name, encoder, choose, refusal):
    choose(REFUSED[name])
    said = refusal(f"encoder={encoder}")
    if name in ("a trial's first step alone", "trials in trials"):  # taken for trials of the factory's own
        assert "trial_init" in said
    else:
        assert said == f"error: env.name is tests.inputs:chosen: {SAID[name]}"


@pytest.mark.parametrize("encoder", ENCODERS)
def test_shorter_episodes_train(encoder, choose, tmp_path):
    """Batches cut trials then, and what follows their end has a value."""
    choose(Row(noted(steps=2)))
    train_here(tmp_path, *SMALL, f"encoder={encoder}")
    ratios = [float(value) for _, metric, value in metrics(tmp_path) if metric == "ppo/first_minibatch_ratio"]
    assert len(ratios) == 2 and all(abs(ratio - 1) <= 1e-5 for ratio in ratios)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("steps", "episodes", "seen"), [(4, 2, 4), (5, 1, 4), (1000, 2, 7)])
def test_longer_episodes_are_refused(steps, episodes, seen, encoder, choose, refusal):
    """Of those that a batch cuts, one step more than it holds is known."""
    choose(Row(noted(steps=steps)))
    frames = LANES * episodes * STEPS
    said = refusal(f"encoder={encoder}", f"env.episodes_per_trial={episodes}", f"total_frames={frames}")
    assert said == (
        f"error: env.name is tests.inputs:chosen: env.horizon is {STEPS} but an episode has at least {seen} steps; "
        f"make it the most steps of an episode, or end episodes there in the factory, StepCounter(max_steps={STEPS})."
    )
