"""The reference of metrics has what a run writes, and nothing else."""

import csv
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.docs.pages import ROOT
from tests.recipes.runs import FRAMES, TINY, train_here

PLACEHOLDERS = {
    "<split>": "(val|test)",
    "<task>": "hidden-goal",
    "<k>": r"\d+",
    "<head>": r"\d+\.\d+",
    "<block>": r"[a-z]+(\.\w+)?",
    "<dimension>": r"\d+",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Names in ``metrics.csv`` and the event file of a run that writes all there is."""
    folder = tmp_path_factory.mktemp("run")
    everything = [f"total_frames={2 * FRAMES}", f"eval.every_frames={FRAMES}", "eval.memory_gain=true"]
    train_here(folder, *TINY, *everything)
    with (folder / "metrics.csv").open(newline="") as file:
        names = {row["metric"] for row in csv.DictReader(file)}
    tags = EventAccumulator(str(folder / "tensorboard")).Reload().Tags()
    return names | {*tags["images"], *tags["histograms"]}


def documented() -> dict[str, str]:
    """Patterns of the names in the reference, by name."""
    names = re.findall(r"`([a-z]+/[^`*]+)`", (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8"))
    return {
        name: re.sub("<[a-z]+>", lambda word: PLACEHOLDERS[word[0]], re.sub(r"\.(?=[a-z])", r"\\.", name))
        for name in names
    }


def test_every_metric_of_a_run_is_documented(written):
    patterns = documented().values()
    assert not sorted(name for name in written if not any(re.fullmatch(pattern, name) for pattern in patterns))


def test_every_documented_metric_is_written(written):
    assert not [
        name for name, pattern in documented().items() if not any(re.fullmatch(pattern, one) for one in written)
    ]
