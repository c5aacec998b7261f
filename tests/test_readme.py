"""The README's Python is run as it stands."""

import re
from pathlib import Path

import pytest

from tests.recipes.runs import train_here

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def execute(tmp_path, monkeypatch, capsys):
    """Runs a block in an empty folder, by itself as a script would; returns what it printed."""

    def run(code):
        monkeypatch.chdir(tmp_path)
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
        return capsys.readouterr().out

    return run


def test_embedding_is_short_and_trains_on_pendulum(execute):
    (code,) = (block for block in BLOCKS if "Pendulum" in block)
    assert len(code.splitlines()) <= 25
    assert "recipes" not in code
    assert len(re.findall(r"return -\d+", execute(code))) == 3


def test_an_own_strategy_takes_ten_lines(execute):
    (code,) = (block for block in BLOCKS if "slots, window, rng" in block)
    (strategy,) = re.findall(r"class Rewarded:\n(?:    .*\n|\n)*", code)
    assert len(strategy.strip().splitlines()) <= 10
    assert execute(code).startswith("tensor(")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of an agent that has seen ``reach-v3`` for two short episodes."""
    folder = tmp_path_factory.mktemp("trained")
    short = ["env.num_envs=2", "env.num_workers=0", "env.episodes_per_trial=2", "env.horizon=50", "total_frames=200"]
    short += ["loss.minibatch_frames=100", "eval.goals_per_task=1"]
    train_here(folder, *short, recipe="ml1_ppo")
    path = max((folder / "checkpoints").glob("step-*"))
    return path


SHOWN = {
    "evaluate(": "protocol strict: 2 adaptation + 1 evaluation episodes of 100 steps",
    "agent.check_env": "",
    "metalearning_evaluation": ", biased",
    "rollout = env.rollout": "tensor(",
    "watch(": "torch.Size([4, 2, 4, 2, 2])",
}


@pytest.mark.parametrize("what", SHOWN)
def test_a_trained_agent_is_used_as_shown(what, checkpoint, execute):
    (code,) = (block for block in BLOCKS if what in block and "CHECKPOINT" in block)
    assert SHOWN[what] in execute(code.replace("CHECKPOINT", str(checkpoint)))


def anchors(page):
    """As code hosts make them of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


PAGES = ["README.md", "results/README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/results/*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = ROOT / page
    links = [link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))]
    links = [(path.parent / target if target else path, anchor) for target, _, anchor in links if "://" not in target]
    assert not [str(target) for target, _ in links if not target.exists()]
    assert not [(str(target), anchor) for target, anchor in links if anchor and anchor not in anchors(target)]


@pytest.mark.parametrize("placeholder", ["QUICKSTART_OUTPUT", "RESULTS_TABLE", "TODO"])
def test_nothing_is_left_to_fill_in(placeholder):
    assert placeholder not in (ROOT / "README.md").read_text(encoding="utf-8")
