"""What is allowed and said: a warning about a choice, a note about an evaluation."""

import pytest

from htrmrl_torchrl.evaluation.protocols import PROTOCOLS
from recipes import evaluate
from recipes.configuration.compose import load_config
from recipes.configuration.relations import longer_trials, warnings
from tests.recipes.runs import TINY, here, train_here

RECENT = "memory.strategy=recent"


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        ([RECENT], True),  # the toy: E = K = 4
        ([RECENT, "encoder.episodes=3"], False),
        ([RECENT, "env.episodes_per_trial=5"], True),  # E follows K
        ([RECENT, "env.episodes_per_trial=5", "encoder.episodes=4"], False),
        ([RECENT, "encoder.episodes=1"], False),  # sees no earlier episode
        ([RECENT, "memory.max_episodes=2", "encoder.episodes=3"], False),
        ([RECENT, "memory.scope=lane", "memory.max_episodes=9", "encoder.episodes=6"], True),  # its own trial's first
        ([RECENT, "encoder=trmrl"], False),
        ([], False),
        (["memory.strategy=uniform"], False),
        (["memory.strategy=best_return"], False),
    ],
)
def test_recent_with_as_many_windows_as_episodes_is_warned_of(overrides, warned, tmp_path):
    said = list(warnings(load_config("toy_ppo", [f"run_dir={tmp_path}", *overrides])))
    assert len(said) == warned
    assert not warned or "memory.strategy is recent and encoder.episodes is" in said[0]


@pytest.mark.parametrize("name", ["toy_ppo", "locomotion_ppo", "ml1_ppo", "ml10_ppo", "ml45_ppo"])
def test_nothing_is_said_of_a_shipped_recipe(name, tmp_path):
    assert list(warnings(load_config(name, [f"run_dir={tmp_path}"]))) == []


def test_a_note_says_where_a_trial_is_longer_than_those_of_training():
    assert list(longer_trials(11, trained=[4])) == ["note: a trial has 11 episodes here; in training it had 4"]
    (line,) = longer_trials(11, trained=[4, 12])  # several agents
    assert line.endswith("in training it had 4 or 12")
    assert list(longer_trials(11, trained=[11, 12])) == []


def test_an_episode_that_starts_from_the_memory_of_the_first_ten_is_the_eleventh():
    """As `separate` has it, see tests/evaluation/test_trials.py."""
    assert {name: protocol.trial_length for name, protocol in PROTOCOLS.items()} == {
        "strict": 11, "sampled": 11, "garage": 11, "metaworld": 13,
    }  # fmt: skip


def test_training_and_evaluation_say_it(tmp_path, monkeypatch, capsys):
    """And the report does not hold it: it is of the agent's training."""
    run_dir = tmp_path / "run"
    said = train_here(run_dir, "total_frames=192", RECENT, *TINY)
    assert "\nnote: a trial has 5 episodes here; in training it had 4\ncurves: " in said
    assert capsys.readouterr().err.count("warning: memory.strategy is recent and") == 1
    play = here(monkeypatch, capsys, evaluate, config_name="evaluate")
    arguments = [f"checkpoint={run_dir}", "num_workers=0", "goals_per_task=1"]
    for adaptation, noted in (("3", False), ("4", True)):
        out, error, code = play(*arguments, f"adaptation_episodes={adaptation}")
        assert code == 0, error
        assert ("\nnote: a trial has 5 episodes here; in training it had 4\n" in out) == noted
        (path,) = (run_dir / "evaluations").glob(f"toy_test_strict_1goals_{adaptation}+1*.json")
        assert "note" not in path.read_text()


def test_a_recipe_whose_evaluation_is_no_longer_says_nothing(tmp_path, capsys):
    said = train_here(tmp_path / "run", "total_frames=192", "eval.adaptation_episodes=3", *TINY)
    assert "note:" not in said and "on held-out goals" in said
    assert "warning: memory" not in capsys.readouterr().err
