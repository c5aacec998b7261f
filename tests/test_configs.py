"""Every shipped YAML composes, passes the checks, and explains itself."""

import re
from pathlib import Path

import pytest
import torch

from htrmrl_torchrl import EpisodicReplayBuffer, EpisodicStorage, keys, make_env
from htrmrl_torchrl.agent.networks import build_networks
from htrmrl_torchrl.faults import UserError
from recipes import ablate, benchmark, evaluate, export, video
from recipes.configuration import rules
from recipes.configuration.compose import CONFIG_DIR, load_config
from recipes.configuration.parts import agent_arguments
from recipes.configuration.relations import frames_per_batch
from recipes.configuration.rules import flatten
from recipes.inside import play as look_inside
from tests.helpers import assert_same

FILES = sorted(CONFIG_DIR.rglob("*.yaml"))
# These have rules and a check of their own.
OTHERS = {
    "ablate": ablate, "benchmark": benchmark, "evaluate": evaluate, "export": export, "look_inside": look_inside,
    "video": video,
}  # fmt: skip
ENCODERS = [path for path in FILES if path.parent.name == "encoder"]
TRAINING = [path for path in FILES if path.stem not in OTHERS and path not in ENCODERS]
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


@pytest.mark.parametrize("encoder", ENCODERS, ids=name_of)
@pytest.mark.parametrize("path", TRAINING, ids=name_of)
def test_every_encoder_fits_every_recipe_and_plays(path: Path, encoder: Path) -> None:
    config = load_config(name_of(path), [f"encoder={encoder.stem}", "total_frames=90_000_000"])
    assert encoder.stem.startswith(config.encoder.kind)
    env = make_env("toy", num_envs=2, episodes_per_trial=2)
    networks = build_networks(**agent_arguments(config, env))
    buffer = EpisodicReplayBuffer(
        storage=EpisodicStorage(24, window=networks.encoder.window, episodes=networks.encoder.episodes), batch_size=24
    )
    with torch.no_grad():
        batch = env.rollout(12, networks.policy, break_when_any_done=False, auto_cast_to_device=True)
        buffer.extend(batch)
        minibatch = next(iter(buffer))
        log_prob = networks.actor.get_dist(minibatch).log_prob(minibatch[keys.ACTION])
    assert_same(log_prob, minibatch[keys.LOG_PROB])


def test_published_sizes() -> None:
    """Parameters of encoder and critic's input, worked out from the sources that the files name."""
    env = make_env("toy", num_envs=1)
    x = 3 + 2 + 2  # a token of the toy
    networks = {
        kind: build_networks(**agent_arguments(load_config("ml10_ppo", [f"encoder={kind}"]), env))
        for kind in ("trmrl", "rl2", "mlp")
    }
    count = {kind: sum(p.numel() for p in of.encoder.parameters()) for kind, of in networks.items()}
    layer = 4 * (32 * 32 + 32) + (32 * 128 + 128) + (128 * 32 + 32)
    # Five learned positions within the window, one of the window that is the whole context.
    assert count["trmrl"] == 32 * x + (5 + 1) * 32 + 4 * layer
    assert count["rl2"] == (x * 256 + 256) + (256 * 256 + 256) + 3 * 2 * (256 * 256 + 256)
    assert count["mlp"] == (3 * 400 + 400) + 2 * (400 * 400 + 400)
    assert networks["trmrl"].critic.in_keys == [keys.CONTEXT]


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_file_composes_and_passes(name: str) -> None:
    assert load_config(name, check=OTHERS[name].check)


def test_the_shipped_evaluation_is_the_strict_one() -> None:
    config = load_config("evaluate", ["checkpoint=runs/x"], evaluate.check)
    assert (config.checkpoint, config.split, config.protocol) == ("runs/x", "test", "strict")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_explains_itself(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = text.split("\n\n")[0]
    assert all(f"# {word}:" in header for word in ("hardware", "duration", "command"))
    assert keys_without_comment(text) == []


def test_the_comment_check_can_fail() -> None:
    text = "# One.\na: 1\nb: 2\n# Group.\nc:\n  d: 3\n  # no stop\n  e: 4\n# Wrong indent.\n  f: 5\n"
    assert keys_without_comment(text) == ["b", "d", "e", "f"]


def test_the_shipped_files_are_these() -> None:
    training = ["base", "locomotion_ppo", "ml10_ppo", "ml1_ppo", "ml45_ppo", "toy_ppo"]
    encoders = [f"encoder/{name}" for name in ("htrmrl", "htrmrl_shallow", "htrmrl_toy", "mlp", "rl2", "trmrl")]
    assert [name_of(path) for path in TRAINING] == training
    assert [name_of(path) for path in FILES] == sorted([*OTHERS, *training, *encoders])


def values_of_all_recipes() -> dict[str, object]:
    values = {key: value for path in TRAINING for key, value in flatten(load_config(name_of(path))).items()}
    for encoder in ENCODERS:
        values |= flatten(load_config("base", [f"encoder={encoder.stem}"]))
    for name, recipe in OTHERS.items():
        values |= flatten(load_config(name, check=recipe.check))
    return values


def test_every_number_has_a_range_and_every_range_a_key() -> None:
    values = values_of_all_recipes()
    own = {*ablate.RULES, *benchmark.RULES}
    numbers = {key for key, value in values.items() if type(value) in (int, float) or value is None}
    without = {key for key in numbers - own if key.rpartition(".")[2] not in rules.RANGES}
    assert without == {"evaluation_actions"}  # a word
    assert {key.rpartition(".")[2] for key in values} >= {*rules.RANGES} and {*values} >= own


def test_the_command_line_overrides_and_the_result_is_frozen() -> None:
    config = load_config("ml10_ppo", ["seed=3", "env.name=ML1:push-v3", "loss.gamma=1", "env.num_envs=10"])
    assert (config.seed, config.env.name, config.loss.gamma) == (3, "ML1:push-v3", 1)
    assert config.run_dir == "runs/ml10_ppo_seed3"
    assert frames_per_batch(config) == 10 * 5 * 200
    with pytest.raises(Exception, match="read-only"):
        config.seed = 4


def test_a_batch_may_hold_several_trials_for_each_lane() -> None:
    assert frames_per_batch(load_config("ml10_ppo", ["collector.frames_per_batch=200_000"])) == 200_000
    with pytest.raises(UserError, match="doesn't fill whole trials"):
        load_config("ml10_ppo", ["collector.frames_per_batch=150_000"])
