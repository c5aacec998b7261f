"""Every shipped YAML composes, passes the checks, and explains itself."""

import re
from pathlib import Path

import pytest

from recipes import _validate, benchmark, evaluate
from recipes._cli import CONFIG_DIR, Check, UserError, load_config
from recipes._validate import Rule, flatten, frames_per_batch

FILES = sorted(CONFIG_DIR.rglob("*.yaml"))
OTHERS = {"benchmark": benchmark, "evaluate": evaluate}  # have rules and a check of their own
TRAINING = [path for path in FILES if path.stem not in OTHERS]
KEY = re.compile(r"^( *)([A-Za-z_]+):")


def name_of(path: Path) -> str:
    return path.relative_to(CONFIG_DIR).with_suffix("").as_posix()


def keys_without_comment(text: str) -> list[str]:
    """Keys without a whole sentence (a comment of their indent that ends in a full stop) right above them."""
    lines = text.splitlines()
    found = []
    for above, line in zip(["", *lines], lines, strict=False):
        match = KEY.match(line)
        if match and match[2] != "defaults" and not re.fullmatch(rf"{match[1]}# \S.*\.", above):
            found.append(match[2])
    return found


@pytest.mark.parametrize("path", TRAINING, ids=name_of)
def test_every_training_file_composes_and_passes(path: Path) -> None:
    config = load_config(name_of(path))
    assert config.total_frames >= frames_per_batch(config)
    assert config.run_dir == f"runs/{name_of(path)}_seed1"


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_file_composes_and_passes(name: str) -> None:
    assert load_config(name, check=OTHERS[name].check)


def test_the_shipped_evaluation_is_the_strict_one() -> None:
    config = load_config("evaluate", ["checkpoint=runs/x"], evaluate.check)
    assert (config.checkpoint, config.split, config.protocol) == ("runs/x", "test", "strict")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_explains_itself(path: Path) -> None:
    text = path.read_text()
    header = text.split("\n\n")[0]
    assert all(f"# {word}:" in header for word in ("hardware", "duration", "command"))
    assert keys_without_comment(text) == []


def test_the_comment_check_can_fail() -> None:
    text = "# One.\na: 1\nb: 2\n# Group.\nc:\n  d: 3\n  # no stop\n  e: 4\n# Wrong indent.\n  f: 5\n"
    assert keys_without_comment(text) == ["b", "d", "e", "f"]


def test_the_shipped_files_are_these() -> None:
    training = ["base", "locomotion_ppo", "ml10_ppo", "ml1_ppo", "ml45_ppo", "toy_ppo"]
    assert [name_of(path) for path in TRAINING] == training
    assert [name_of(path) for path in FILES] == sorted([*OTHERS, *training])


@pytest.mark.parametrize(
    "name,check,rules",
    [
        ("base", _validate.validate, _validate.RULES),
        ("benchmark", benchmark.check, benchmark.RULES),
        ("evaluate", evaluate.check, evaluate.RULES),
    ],
    ids=["base", "benchmark", "evaluate"],
)
def test_every_key_has_a_rule_and_every_rule_a_key(name: str, check: Check, rules: dict[str, Rule]) -> None:
    values = flatten(load_config(name, check=check))
    assert set(rules) == {key for key, value in values.items() if not isinstance(value, bool)}


def test_the_command_line_overrides_and_the_result_is_frozen() -> None:
    config = load_config("ml10_ppo", ["seed=3", "env.name=ML1:push-v3", "loss.gamma=1", "env.num_envs=10"])
    assert (config.seed, config.env.name, config.loss.gamma) == (3, "ML1:push-v3", 1)
    assert config.run_dir == "runs/ml10_ppo_seed3"
    assert frames_per_batch(config) == 10 * 10 * 500
    with pytest.raises(Exception, match="read-only"):
        config.seed = 4


def test_a_batch_may_hold_several_trials_for_each_lane() -> None:
    assert frames_per_batch(load_config("ml10_ppo", ["collector.frames_per_batch=200_000"])) == 200_000
    with pytest.raises(UserError, match="doesn't fill whole trials"):
        load_config("ml10_ppo", ["collector.frames_per_batch=150_000"])
