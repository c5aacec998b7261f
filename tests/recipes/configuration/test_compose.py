"""A wrong configuration ends in one sentence, exit code 2, and before anything is built."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from omegaconf import DictConfig

from htrmrl_torchrl.faults import UserError
from recipes import evaluate
from recipes.configuration.compose import CONFIG_DIR, Check, load_config, run_recipe
from recipes.configuration.rules import validate
from tests.recipes.runs import python_path

ROOT = Path(__file__).resolve().parents[3]

# overrides -> parts of the sentence: the key, what was received, what is allowed
WRONG: dict[str, tuple[list[str], list[str]]] = {
    "misspelt key": (["encoder.widow=5"], ["unknown key 'encoder.widow'", "encoder.window"]),
    "wrong group": (["env.window=5"], ["unknown key 'env.window'", "encoder.window"]),
    "unlike any key": (["zzzzzz=5"], ["unknown key 'zzzzzz'", "--cfg"]),
    "group": (["env=5"], ["env is a group", "env.name"]),
    "encoder": (
        ["encoder=foo"],
        ["encoder is 'foo' but must be htrmrl, htrmrl_shallow, htrmrl_toy, mlp, rl2 or trmrl"],
    ),
    "encoder without keys": (["encoder="], ["encoder is ''", "encoder.<key>=value"]),
    "kind without its keys": (["encoder.kind=rl2"], ["encoder.kind is 'rl2'", "must be 'htrmrl'", "encoder=rl2"]),
    "key of another encoder": (["encoder=rl2", "encoder.window=3"], ["unknown key 'encoder.window'"]),
    "token without memory": (["encoder=mlp", "policy.observe_token=true"], ["policy.observe_token", "encoder=mlp"]),
    "segment of a trial": (
        ["encoder=rl2", "env.horizon=20", "loss.segment_frames=201"],
        ["is 201", "at most a trial", "is 100"],
    ),
    "layers of an MLP": (["encoder=rl2", "encoder.mlp_layers=0"], ["encoder.mlp_layers is 0", "at least 1"]),
    "added key": (["+foo=1"], ["'+foo=1'", "not added or removed"]),
    "removed key": (["~seed"], ["'~seed'", "not added or removed"]),
    "sweep": (["seed=1,2"], ["'seed=1,2'", "once for each value"]),
    "no value": (["seed"], ["'seed'", "key=value"]),
    "unquoted brackets": (["env.name=custom:[reach-v3]/[push-v3]"], ["quoted"]),
    "broken interpolation": (["env.horizon=${env.hight}"], ["env.hight"]),
    "option": (["--multirun"], ["--multirun", "--cfg"]),
    "string for integer": (["total_frames=many"], ["total_frames is 'many'", "an integer"]),
    "float for integer": (["total_frames=1e6"], ["total_frames is 1000000.0", "write 1000000"]),
    "boolean for integer": (["encoder.window=true"], ["encoder.window is True", "an integer"]),
    "integer for boolean": (["loss.value_norm=1"], ["loss.value_norm is 1", "true or false"]),
    "boolean for number": (["optim.lr=true"], ["optim.lr is True", "a number"]),
    "number for string": (["env.name=10"], ["env.name is 10", "a string"]),
    "null": (["seed=null"], ["seed is null", "an integer"]),
    "least std": (["policy.min_std=2"], ["policy.min_std is 2", "at most policy.init_std, which is 1.0"]),
    "string where null is allowed": (["collector.frames_per_batch=all"], ["'all'", "an integer or null"]),
    "not finite": (["optim.lr=nan"], ["optim.lr is nan", "finite"]),
    "seed": (["seed=-1"], ["seed is -1", "from 0 to"]),
    "large seed": (["seed=9223372036854775808"], ["seed is 9223372036854775808", "from 0 to 2**63 - 1"]),
    "T < 1": (["encoder.window=0"], ["encoder.window is 0", "at least 1"]),
    "E < 1": (["encoder.episodes=0"], ["encoder.episodes is 0", "at least 1"]),
    "L1 < 1": (["encoder.intra_layers=0"], ["encoder.intra_layers is 0", "at least 1"]),
    "L2 < 0": (["encoder.inter_layers=-1"], ["encoder.inter_layers is -1", "at least 0"]),
    "gamma": (["loss.gamma=1.5"], ["loss.gamma is 1.5", "at most 1"]),
    "gamma 0": (["loss.gamma=0"], ["loss.gamma is 0", "greater than 0"]),
    "lambda": (["loss.gae_lambda=-0.1"], ["loss.gae_lambda is -0.1", "between 0 and 1"]),
    "clip": (["loss.clip_epsilon=0"], ["loss.clip_epsilon is 0", "greater than 0"]),
    "critic's share": (["loss.critic_coeff=0"], ["loss.critic_coeff is 0", "greater than 0"]),
    "lr": (["optim.lr=0"], ["optim.lr is 0", "greater than 0"]),
    "schedule": (["optim.schedule=cosine"], ["'cosine'", "constant or linear"]),
    "target KL": (["loss.target_kl=0"], ["loss.target_kl is 0", "greater than 0"]),
    "attention": (["encoder.attention=sparse"], ["'sparse'", "causal or full"]),
    "norm": (["encoder.norm=post_ln"], ["'post_ln'", "pre_ln or tfixup"]),
    "strategy": (
        ["memory.strategy=best"],
        ["'best'", "recent or uniform or uniform_last or best_return or best_and_uniform or diverse or similar"],
    ),
    "scope": (["memory.scope=task"], ["'task'", "trial or lane"]),
    "no memory": (["memory.max_episodes=0"], ["memory.max_episodes is 0", "at least 1"]),
    "memory of nothing": (
        ["encoder=rl2", "memory.scope=lane", "memory.max_episodes=20"],
        ["memory.scope is lane", "encoder=rl2"],
    ),
    "slots that training never fills": (
        ["encoder.episodes=6"],
        ["encoder.episodes is 6", "at most 5", "memory.strategy=best_return", "would stay untrained"],
    ),
    "slots of episodes that are forgotten": (
        ["memory.strategy=recent", "memory.max_episodes=2"],
        ["encoder.episodes is 5", "at most 3", "memory.strategy=recent"],
    ),
    "endless memory": (["memory.scope=lane"], ["memory.max_episodes is null", "must be a number", "= 10"]),
    "std": (["policy.std=fixed"], ["'fixed'", "independent or dependent"]),
    "critic": (["critic.kind=q"], ["'q'", "shared or separate or single_step"]),
    "credit": (["loss.credit=step"], ["'step'", "episode or trial"]),
    "advantage": (["loss.advantage_norm=minibatch"], ["'minibatch'", "batch or task or none"]),
    "protocol": (["eval.protocol=loose"], ["'loose'", "strict"]),
    "heads": (["encoder.num_heads=5"], ["encoder.d_model is 64", "multiple of encoder.num_heads, which is 5"]),
    "workers": (["env.num_workers=21"], ["env.num_workers is 21", "at most env.num_envs, which is 20"]),
    "processes": (["workers=21"], ["workers is 21", "at most env.num_envs, which is 20"]),
    "no process": (["workers=0"], ["workers is 0", "at least 1"]),
    "cut trial": (["collector.frames_per_batch=1000"], ["is 1000", "doesn't fill whole trials", "= 20000"]),
    "less than a batch": (["total_frames=19_999"], ["total_frames is 19999", "20000 frames"]),
    "segment": (["env.horizon=40"], ["loss.segment_frames is 50", "at most env.horizon, which is 40"]),
    "minibatch": (["loss.minibatch_frames=4001"], ["4001", "multiple of loss.segment_frames, which is 50"]),
    "minibatch > batch": (["loss.minibatch_frames=100_050"], ["100050", "at most one batch"]),
    "device": (["device=abacus"], ["device is 'abacus'", "cpu, cuda"]),
    "missing device": (["device=cuda:99"], ["device is 'cuda:99'", "available"]),
    "other device": (["device=meta"], ["device is 'meta'", "cpu, cuda"]),
    "run_dir is a file": (["run_dir=/dev/null"], ["/dev/null is a device", "choose a folder"]),
    "run_dir below a file": (["run_dir=/dev/null/run"], ["/dev/null is a device", "choose a folder"]),
    "name too long": ([f"run_dir={'x' * 300}"], ["File name too long"]),
    "path too long": ([f"resume={'x' * 300}"], ["File name too long"]),
    "resume": (["resume=nowhere"], ["resume is 'nowhere'", "auto, never or the path"]),
    "empty run_dir": (["run_dir=' '"], ["run_dir is ' '", "not empty"]),
    "benchmark": (["env.name=ML11"], ["ML11", "ML10"]),
    "factory": (["env.name=no_such_module:make"], ["no_such_module"]),
    "function": (
        ["env.name=math:floor"],
        ["'math:floor' is no environment factory", "factory(split=, num_envs=, seed=)"],
    ),
    "workers of a factory": (["env.name=builtins:dict"], ["env.num_workers is 2", "must be 0"]),
    "processes of a factory": (
        ["env.name=builtins:dict", "env.num_workers=0", "workers=2"],
        ["workers is 2", "must be 1 with a factory"],
    ),
    "rewards of a factory": (
        ["env.name=builtins:dict", "env.num_workers=0"],
        ["loss.reward_norm is True", "must be false with a factory"],
    ),
    "backend": (["env.backend=warp"], ["env.backend is 'warp'", "fast or official"]),
    "long episodes": (["env.horizon=501"], ["env.horizon is 501", "at most 500"]),
    "long evaluation": (["eval.horizon=501"], ["eval.horizon is 501", "at most 500"]),
    "too many goals": (["eval.goals_per_task=51"], ["eval.goals_per_task is 51", "at most 50"]),
    "benchmark seed": (["env.benchmark_seed=9999999999999"], ["benchmark_seed", "9999999999999"]),
    "task": (["env.name=ML1:reech-v3"], ["reech-v3", "reach-v3"]),
    "no test task": (["env.name='custom:[reach-v3]/[]'"], ["no test tasks"]),
}


# the same for configs/evaluate.yaml, which has rules of its own
WRONG_EVALUATION: dict[str, tuple[list[str], list[str]]] = {
    "misspelt key": (["chekpoint=runs/x"], ["unknown key 'chekpoint'", "checkpoint"]),
    "key of a training recipe": (["env.name=ML10"], ["unknown key 'env.name'"]),
    "no number": (["seed=x"], ["seed is 'x'", "an integer"]),
    "empty path": (["checkpoint=' '"], ["checkpoint is ' '", "not empty"]),
    "split": (["split=tset"], ["split is 'tset'", "train or val or test"]),
    "protocol": (["protocol=loose"], ["protocol is 'loose'", "strict or sampled or garage or metaworld"]),
    "no goals": (["goals_per_task=0"], ["goals_per_task is 0", "at least 1"]),
    "goals in words": (["goals_per_task=all"], ["goals_per_task is 'all'", "an integer or null"]),
    "adaptation": (["adaptation_episodes=-1"], ["adaptation_episodes is -1", "at least 0"]),
    "nothing that counts": (["evaluation_episodes=0"], ["evaluation_episodes is 0", "at least 1"]),
    "actions": (["evaluation_actions=best"], ["evaluation_actions is 'best'", "mean or sampled"]),
    "horizon": (["horizon=0"], ["horizon is 0", "at least 1"]),
    "benchmark seed": (["benchmark_seed=-1"], ["benchmark_seed is -1", "at least 0"]),
    "seed": (["seed=null"], ["seed is null", "an integer"]),
    "device": (["device=abacus"], ["device is 'abacus'", "cpu, cuda"]),
    "lanes": (["num_envs=0"], ["num_envs is 0", "at least 1"]),
    "workers": (["num_workers=-1"], ["num_workers is -1", "at least 0"]),
    "stages": (["stages=1"], ["stages is 1", "true or false"]),
}


def never(config: DictConfig) -> None:
    raise AssertionError("the recipe was started")


def refusal(
    arguments: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    config_name: str = "ml10_ppo",
    check: Check = validate,
) -> str:
    """The sentence that ``arguments`` end in."""
    monkeypatch.setattr(sys, "argv", ["recipe.py", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        run_recipe(never, config_name=config_name, check=check)
    assert exit_info.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("case", WRONG)
def test_wrong_configurations_end_in_one_sentence(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides, parts = WRONG[case]
    sentence = refusal(overrides, monkeypatch, capsys)
    assert all(part in sentence for part in parts), sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", WRONG_EVALUATION)
def test_wrong_evaluations_end_in_one_sentence(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides, parts = WRONG_EVALUATION[case]
    sentence = refusal(overrides, monkeypatch, capsys, config_name="evaluate", check=evaluate.check)
    assert all(part in sentence for part in parts), sentence
    assert list(tmp_path.iterdir()) == []


def test_run_dir_below_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert f"{file} is a file" in refusal([f"run_dir={file}/run"], monkeypatch, capsys)


def test_resume_never_refuses_a_used_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "metrics.csv").touch()
    assert "is not empty" in refusal([f"run_dir={tmp_path}", "resume=never"], monkeypatch, capsys)


def test_a_user_error_from_the_recipe_is_one_sentence_and_a_bug_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asks_too_much(config: DictConfig) -> None:
        raise UserError("the checkpoint\nhas another shape")

    def has_a_bug(config: DictConfig) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(sys, "argv", ["recipe.py"])
    with pytest.raises(SystemExit, match="2"):
        run_recipe(asks_too_much, config_name="toy_ppo")
    assert capsys.readouterr().err == "error: the checkpoint has another shape\n"
    with pytest.raises(ValueError, match="a bug"):
        run_recipe(has_a_bug, config_name="toy_ppo")


def test_the_recipe_receives_the_checked_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    received = []
    monkeypatch.setattr(sys, "argv", ["recipe.py", "seed=7", "memory.strategy=recent", "env.reward_scale=1"])
    run_recipe(received.append, config_name="ml10_ppo")
    (config,) = received
    assert (config.seed, config.memory.strategy, config.run_dir) == (7, "recent", "runs/ml10_ppo_seed7")


@pytest.mark.parametrize("option", ["--help", "--cfg"])
def test_help_and_cfg_show_the_keys_and_stop(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe.py", option, "seed=7"])
    run_recipe(never, config_name="toy_ppo")
    out = capsys.readouterr().out
    if option == "--cfg":
        assert "num_heads: 4" in out and "run_dir: runs/toy_ppo_seed7" in out
    else:  # sentences of base.yaml, of the encoder's file, and the recipe's own value
        assert "\nencoder.num_heads=4\n    Attention heads of every layer.\n" in out
        assert "\nenv.horizon=6\n    H, the steps of an episode; at most 500 in Meta-World.\n" in out


@pytest.mark.parametrize("config", sorted(path.stem for path in CONFIG_DIR.glob("*.yaml") if path.stem != "base"))
def test_help_has_a_sentence_for_every_key(config: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--help"])
    run_recipe(never, config_name=config)
    keys = capsys.readouterr().out.partition("\nKeys and defaults")[2].split("\n\n")[1:]
    assert len(keys) > 1 and all(re.fullmatch(r"\S+=.*(\n    \S.*)+\n?", entry) for entry in keys)


def own(folder: Path, text: str) -> Path:
    """A folder with a configuration `mine.yaml`."""
    folder.mkdir()
    (folder / "mine.yaml").write_text(text)
    return folder


def test_a_configuration_of_ones_own_builds_on_the_shipped_ones(tmp_path: Path) -> None:
    folder = own(tmp_path / "a, 'folder'=${x}", "defaults:\n  - toy_ppo\n  - _self_\nenv:\n  num_envs: 8\n")
    config = load_config("mine", ["seed=3", "loss.minibatch_frames=192"], config_dir=folder)
    assert (config.env.num_envs, config.env.name, config.seed) == (8, "toy", 3)
    (folder / "encoder").mkdir()
    (folder / "encoder" / "wide.yaml").write_text("defaults:\n  - htrmrl_toy\n  - _self_\nd_model: 96\n")
    assert load_config("toy_ppo", ["encoder=wide"], config_dir=folder).encoder.d_model == 96


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("defaults:\n  - base\n  - _self_\nenv:\n  nmae: toy\n", "unknown key 'env.nmae'; the nearest known keys are"),
        ("defaults:\n  - base\n  - _self_\nseed: one\n", "seed is 'one' but must be an integer"),
        ("defaults:\n  - base\n  - _self_\nseed: 0.5\n", "seed is 0.5 but must be an integer"),
        ("defaults:\n  - base\n  - _self_\nenv: 3\n", "node `env` is not a container"),
        ("seed: 1\n", "mine.yaml has no checkpoint.every_frames: begin it with"),
        ("defaults:\n  - bsae\n", "bsae"),
        ("seed: [\n", "mine.yaml cannot be read: while parsing"),
        ("- 1\n", "primary config 'mine' must be"),
        ("", "mine.yaml has no checkpoint.every_frames: begin it with"),
        ("\x00", "mine.yaml cannot be read: unacceptable character"),
        ("defaults:\n  - base\n  - _self_\nseed: ${oc.env:HOME}\n", "must be an integer"),
    ],
)
def test_a_wrong_configuration_of_ones_own_is_one_sentence(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(expected)):
        load_config("mine", config_dir=own(tmp_path / "own", text))


SCRIPT = """
from pathlib import Path
from recipes.configuration.compose import run_recipe

def main(config):
    Path(config.run_dir).mkdir(parents=True)

run_recipe(main, config_name="toy_ppo")
"""


def in_a_process(
    arguments: Sequence[str], folder: Path, *, script: Sequence[str] = ("-c", SCRIPT), **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *script, *arguments],
        cwd=folder,
        env={"PYTHONPATH": python_path(ROOT), "PATH": "", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("override", ["encoder.widow=5", pytest.param("env.name=ML1:reech-v3", marks=pytest.mark.slow)])
def test_a_real_process_refuses_and_leaves_nothing(override: str, tmp_path: Path) -> None:
    result = in_a_process([override], tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr, result.stderr
    assert result.stdout == "" and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_folder_that_only_the_attempt_shows_to_be_unwritable(tmp_path: Path) -> None:
    """Root may write everywhere by its rights, and in /proc nothing can be made; others may not even try."""
    result = in_a_process(["run_dir=/proc/runs/toy"], tmp_path, script=[str(ROOT / "recipes" / "toy_ppo.py")])
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: run_dir is '/proc/runs/toy' but /proc")
    assert result.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", ["toy_ppo", "ml10_ppo"])
def test_an_unusable_opengl_backend_is_one_sentence(recipe: str, tmp_path: Path) -> None:
    """TorchRL imports MuJoCo, which then raises whatever its layers happen to raise."""
    script = [str(ROOT / "recipes" / f"{recipe}.py")]
    result = in_a_process([], tmp_path, script=script, MUJOCO_GL="vulkan")
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: MuJoCo cannot draw pictures with MUJOCO_GL=vulkan (RuntimeError: ")
    assert result.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_a_real_process_with_a_right_configuration_leaves_its_run_folder_alone(tmp_path: Path) -> None:
    result = in_a_process(["seed=2"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["runs", "runs/toy_ppo_seed2"]
