"""Every Python block of the documentation runs as it stands and prints what the page says."""

import re
import sys

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, name_of
from tests.recipes.runs import train_here

WITH_CODE = [page for page in PAGES[1:] if any(language == "python" for language, _, _ in blocks(page))]
TOY = ROOT / "results/trial_length/uniform_last_seed1.torchrl"

# What a page prints that no block below shows, because it differs from one machine to the next.
PRINTED = {
    "docs/tutorials/torchrl_loop.md": r"(return -\d+, last ratio [01]\.\d+\n){3}",
    "docs/tutorials/load_and_play.md": r"success \d\.\d\d, biased\n",
    "docs/guides/evaluate.md": "protocol strict: 2 adaptation \\+ 1 evaluation episodes of 100 steps",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of an agent that has seen ``reach-v3`` for two short episodes."""
    folder = tmp_path_factory.mktemp("trained")
    short = ["env.num_envs=2", "env.num_workers=0", "env.episodes_per_trial=2", "env.horizon=50", "total_frames=200"]
    short += ["loss.minibatch_frames=100", "eval.goals_per_task=1"]
    train_here(folder, *short, recipe="ml1_ppo")
    return max((folder / "checkpoints").glob("step-*"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder, from which modules can be imported as by a script that lies there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = {*sys.modules}
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        if path.stem not in before:
            sys.modules.pop(path.stem, None)


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_blocks_of_a_page_run_one_after_the_other(page, checkpoint, folder, capsys):
    """A block that begins with the name of a file is saved there, as the reader is told to do."""
    names, output = {"__name__": "__main__"}, ""
    for language, code, printed in blocks(page):
        if language != "python":
            continue
        if saved := re.match(r"# (\w+\.py)\n", code):
            (folder / saved[1]).write_text(code)
            continue
        code = code.replace("TOY_CHECKPOINT", str(TOY)).replace("CHECKPOINT", str(checkpoint))
        exec(compile(code, name_of(page), "exec"), names)
        said = capsys.readouterr().out
        assert not printed or said == printed
        output += said
    assert re.search(PRINTED.get(name_of(page), ""), output)


def test_there_is_code_to_run():
    assert len(WITH_CODE) >= 8


def test_an_own_strategy_takes_ten_lines():
    (code,) = (
        code for _, code, _ in blocks(ROOT / "docs/tutorials/strategy_and_encoder.md") if "class Rewarded" in code
    )
    (strategy,) = re.findall(r"class Rewarded:\n(?:    .*\n|\n)*", code)
    assert len(strategy.strip().splitlines()) <= 10
