"""What a configuration says of evaluation during training, and what the best checkpoint is chosen by."""

import numpy as np
import pytest

from htrmrl_torchrl import evaluate, make_env
from htrmrl_torchrl.agent.networks import build_networks
from htrmrl_torchrl.envs import metaworld
from htrmrl_torchrl.envs.benchmarks import draw_goals
from htrmrl_torchrl.evaluation import EvaluationReport
from htrmrl_torchrl.faults import UserError
from recipes.configuration import environment as _environment
from recipes.configuration.compose import load_config
from recipes.configuration.environment import LOWEST, evaluate_on_held_out, score_on_val, training_environment
from tests.evaluation.reports import hand_made
from tests.evaluation.test_memory_gain import remembering

METAWORLD = {"observation_dim": 39, "action_low": [-1.0] * 4, "action_high": [1.0] * 4}


class SeenError(Exception):
    """Carries the goals that simulators were about to be built with."""


@pytest.fixture
def goals_of(monkeypatch):
    """Calls something up to where simulators are built; returns the goals that they would get."""

    def refuse(task_names, goals, *_):
        raise SeenError(goals)

    monkeypatch.setattr(metaworld, "build_lanes", refuse)

    def call(something):
        with pytest.raises(SeenError) as seen:
            something()
        return seen.value.args[0]

    return call


@pytest.mark.parametrize("benchmark_seed", [0, 3])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_simulators_get_the_goals_of_split_and_seed(split, benchmark_seed, goals_of):
    networks = build_networks(**METAWORLD)
    about = {"split": split, "benchmark_seed": benchmark_seed}
    (expected,) = draw_goals("ML1:reach", split, benchmark_seed)
    (built,) = goals_of(lambda: make_env("ML1:reach", num_envs=1, **about))
    (evaluated,) = goals_of(lambda: evaluate(networks, "ML1:reach", goals_per_task=1, num_workers=0, **about))
    assert np.array_equal(built, expected) and np.array_equal(evaluated, expected)
    others = [draw_goals("ML1:reach", other, 0)[0] for other in {"train", "val", "test"} - {split}]
    assert not any(np.array_equal(expected, other) for other in others if benchmark_seed == 0)


def test_a_recipe_trains_on_the_goals_of_its_benchmark_seed(goals_of):
    config = load_config("ml1_ppo", ["env.benchmark_seed=3", "env.num_workers=0"])
    (goals,) = goals_of(lambda: training_environment(config))
    assert np.array_equal(goals, draw_goals(config.env.name, "train", 3)[0])


def test_evaluation_beside_training_is_as_configured(monkeypatch, tmp_path):
    calls = []

    def noted(networks, name, **asked):
        calls.append({"name": name, **asked})
        return hand_made([[[0], [1]]], split=asked["split"])

    monkeypatch.setattr(_environment, "evaluate", noted)
    changed = ["eval.protocol=garage", "eval.goals_per_task=3", "eval.adaptation_episodes=7", "eval.horizon=40"]
    config = load_config("ml1_ppo", [*changed, "env.benchmark_seed=5", "seed=9", "env.name=ML1:push-v3"])
    evaluate_on_held_out(config, None, tmp_path, frames=1, last=False)
    assert [call["split"] for call in calls] == ["val", "test"]
    expected = {
        "name": "ML1:push-v3", "protocol": "garage", "goals_per_task": 3, "adaptation_episodes": 7, "horizon": 40,
        "benchmark_seed": 5, "seed": 9,
    }  # fmt: skip
    assert all({key: call[key] for key in expected} == expected for call in calls)


@pytest.mark.parametrize(
    ("wanted", "last", "plays"), [("true", True, True), ("true", False, False), ("false", True, False)]
)
def test_the_gain_from_memory_is_played_at_the_end_alone(wanted, last, plays, tmp_path):
    """By an agent whose gain is -1: it knows the goal in a trial's first episode only."""
    config = load_config("toy_ppo", [f"eval.memory_gain={wanted}", "eval.goals_per_task=4", "env.num_workers=0"])
    metrics = evaluate_on_held_out(config, remembering({0: {0, 1, 2, 3}}), tmp_path, frames=7, last=last)
    gains = {name: value for name, value in metrics.items() if "gain" in name}
    assert gains == ({"eval/val_memory_gain": -1.0, "eval/test_memory_gain": -1.0} if plays else {})
    saved = EvaluationReport.load(tmp_path / "test_000000000007.json")
    assert (saved.without_memory is not None) == plays


@pytest.mark.parametrize("asked", [["env.episodes_per_trial=1", "encoder.episodes=1"], ["eval.adaptation_episodes=1"]])
def test_a_gain_from_memory_wants_two_episodes(asked):
    with pytest.raises(UserError, match=r"eval\.memory_gain is True but must be false .* which are 1"):
        load_config("toy_ppo", ["eval.memory_gain=true", *asked])


def test_the_best_checkpoint_is_chosen_on_val_alone():
    assert score_on_val({"eval/val_success": 0.2, "eval/test_success": 0.9, "eval/val_return": 7.0}) == 0.2
    assert score_on_val({"eval/val_return": -3.0, "eval/test_return": 9.0}) == -3.0
    assert score_on_val({"eval/test_success": 1.0, "train/success": 1.0}) == LOWEST
