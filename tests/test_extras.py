"""The core embeds without any extra, and what an extra brings is asked for in one sentence."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from htrmrl_torchrl.extras import MissingExtraError, require
from tests.wheels import build_wheel, install, link, plain_environment, required

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# By distribution, where the name differs.
MODULES = {"pillow": "PIL", "imageio-ffmpeg": "imageio_ffmpeg"}
EXTRAS = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs")}


def modules_of(extra):
    return {MODULES.get(name, name) for name in (Requirement(line).name for line in EXTRAS[extra])} - {"htrmrl_torchrl"}


OPTIONAL = {module for extra in EXTRAS for module in modules_of(extra)}


def imported_at_once(tree):
    """Modules that importing a file imports: not those inside functions, nor for type checking."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ):
            yield from imported_at_once(node)


def test_the_library_imports_no_optional_package_before_it_is_used():
    files = sorted((ROOT / "htrmrl_torchrl").rglob("*.py"))
    found = {path.name: OPTIONAL & {*imported_at_once(ast.parse(path.read_text(encoding="utf-8")))} for path in files}
    assert len(files) > 90 and not {name: modules for name, modules in found.items() if modules}
    control = ast.parse("import os\ntry:\n    from tqdm import tqdm\nfinally: ...\ndef f():\n    import matplotlib")
    assert OPTIONAL & {*imported_at_once(control)} == {"tqdm"}


def test_every_extra_that_is_asked_for_exists_and_brings_the_module():
    asked = [
        ast.literal_eval(f"({match[1]},)")
        for folder in ("htrmrl_torchrl", "recipes")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for match in re.finditer(r"^ +require\((\".*\")\)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(asked) >= 10
    for extra, *modules in asked:
        assert {*modules} <= modules_of(extra) | (modules_of("plots") if extra == "cli" else set()), extra


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError) as error:
        require("plots", "matplotlib")
    assert str(error.value) == "matplotlib is not installed: pip install 'htrmrl_torchrl[plots]'"
    assert isinstance(error.value, ImportError)


# ------------------------------------------------------------------------------------------ a wheel with the core alone

EVERYTHING = """
import importlib, pkgutil
import htrmrl_torchrl
for name in htrmrl_torchrl.__all__:
    getattr(htrmrl_torchrl, name)
for module in pkgutil.walk_packages(htrmrl_torchrl.__path__, "htrmrl_torchrl."):
    importlib.import_module(module.name)
assert "site-packages" in htrmrl_torchrl.__file__
"""
USES = """
import tempfile
import torch
from htrmrl_torchrl import HTrMRLAgent, evaluate
from htrmrl_torchrl.agent.networks import build_networks
from htrmrl_torchrl.runs.loggers import RunLogger

agent = HTrMRLAgent(build_networks(observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2))
report = evaluate(agent, "toy", adaptation_episodes=2)
folder = agent.save_pretrained(tempfile.mkdtemp(), report=report)
again = evaluate(HTrMRLAgent.from_pretrained(folder), "toy", adaptation_episodes=2)
assert again.returns.tolist() == report.returns.tolist()
with RunLogger(tempfile.mkdtemp()) as logger:
    logger.log({"train/success": 0.5}, frames=1)
    logger.log_histogram("x", torch.ones(3), 1)
print(report)
"""
MISSING = {
    "cli": "evaluate(agent, 'toy', progress=True)",
    "plots": "plot_adaptation({'x': evaluate(agent, 'toy')})",
    "video": "write_frames(np.zeros((2, 32, 32, 3), np.uint8), 'x.mp4', fps=10)",
    "hub": "HTrMRLAgent.from_pretrained('user/agent')",
    "wandb": "RunLogger('run', loggers=['csv', 'wandb'])",
}
ASKED = """
import numpy as np
from htrmrl_torchrl import HTrMRLAgent, evaluate
from htrmrl_torchrl.agent.networks import build_networks
from htrmrl_torchrl.evaluation import plot_adaptation
from htrmrl_torchrl.media import write_frames
from htrmrl_torchrl.runs.loggers import RunLogger
agent = build_networks(observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2)
try:
    USE
except ImportError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """Runs a command in an environment with the wheel, what the core requires, and nothing else."""
    folder = tmp_path_factory.mktemp("core")
    packages = link(required(PROJECT["dependencies"]), folder / "packages")
    python = install(build_wheel(folder), folder, packages=[str(packages)])

    def run(program, *arguments):
        return subprocess.run(
            [python.with_name(program), *arguments],
            cwd=folder, env=plain_environment(), capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    return run


def completed(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_core_alone_is_without_the_extras(core):
    found = "import importlib.util as u, sys; print(*[name for name in sys.argv[1:] if u.find_spec(name)])"
    # What TensorBoard and Meta-World require themselves is there whatever we ask for.
    assert {*completed(core("python", "-c", found, *sorted(OPTIONAL))).split()} == {"PIL", "imageio"}


@pytest.mark.slow
def test_every_module_is_imported_with_the_core_alone(core):
    completed(core("python", "-c", EVERYTHING))


@pytest.mark.slow
def test_the_embedding_example_trains_with_the_core_alone(core):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "Pendulum" in block)
    assert len(re.findall(r"return -\d+", completed(core("python", "-c", code)))) == 3


@pytest.mark.slow
def test_agents_are_evaluated_saved_and_logged_with_the_core_alone(core):
    assert "toy test, protocol strict" in completed(core("python", "-c", USES))


@pytest.mark.slow
@pytest.mark.parametrize("extra", MISSING)
def test_what_needs_an_extra_says_which(extra, core):
    said = completed(core("python", "-c", ASKED.replace("USE", MISSING[extra])))
    assert said.count("\n") == 1 and f"is not installed: pip install 'htrmrl_torchrl[{extra}]'" in said


@pytest.mark.slow
def test_the_command_without_its_extra(core):
    assert "toy" in completed(core("htrmrl", "ls")) and "num_envs" in completed(core("htrmrl", "run", "toy", "--cfg"))
    for arguments in (["run", "toy"], ["evaluate", "checkpoint=x"], ["plot", "run"]):
        done = core("htrmrl", *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert done.stderr.startswith("error: ") and "is not installed: pip install 'htrmrl_torchrl[" in done.stderr
