"""Tables on pages are those of the committed files, and an altered file makes them stale."""

import csv
import hashlib
import json
import re
import shutil

import numpy as np
import pytest

from htrmrl_torchrl.evaluation import EvaluationReport
from results.tables.cells import TABLES, cell, markdown
from results.tables.ml10 import HTRMRL, PLAYED, RUNS, ml10
from results.tables.pages import MARKED, ROOT, filled, main, pages

RESULTS = ROOT / "results"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_no_table_is_stale(page):
    text = page.read_text(encoding="utf-8")
    assert filled(text, RESULTS) == text, f"{page.name} is not what `make tables` writes"


def test_every_table_is_on_a_page_and_the_headline_on_the_first():
    shown = {page.name: {name for _, name, _ in MARKED.findall(page.read_text(encoding="utf-8"))} for page in pages()}
    assert set.union(*shown.values()) == {*TABLES}
    assert "headline" in shown["README.md"]


@pytest.fixture
def copied(tmp_path):
    """The files that tables are made from."""
    ignored = shutil.ignore_patterns("*.torchrl", "*.png", "*.py")
    return shutil.copytree(RESULTS, tmp_path / "results", ignore=ignored)


def test_one_episode_that_turns_out_otherwise_makes_pages_stale(copied):
    """Success of a seed is 12 of 50 goals: one more is 0.26 instead of 0.24."""
    stale = [page for page in pages() if filled(page.read_text(encoding="utf-8"), copied) != page.read_text()]
    assert stale == []
    (path,) = copied.glob(f"ml10/{HTRMRL[1]}/evaluations/ML10_test_strict_10goals_10+1*0.json")
    report = json.loads(path.read_text())
    assert report["success"][0][20][10] == 0  # lever-pull, which is never solved
    report["success"][0][20][10] = 1
    path.write_text(json.dumps(report))
    stale = [page.name for page in pages() if filled(page.read_text(encoding="utf-8"), copied) != page.read_text()]
    assert "ml10.md" in stale
    rows = [
        next(row for row in TABLES["ml10_seeds"](where).splitlines() if "seed 2" in row) for where in (RESULTS, copied)
    ]
    assert [row.split(" | ")[3][:4] for row in rows] == ["0.24", "0.26"]


def altered(content):
    """Other numbers in the same places."""
    if isinstance(content, dict):
        return {key: altered(value) for key, value in content.items()}
    if isinstance(content, list):
        return [altered(value) for value in content]
    return 1.1 - content if isinstance(content, float) else content


def test_no_table_holds_numbers_of_its_own(copied):
    """With every file altered no row stays, but the paper's."""
    for path in copied.rglob("*.json"):
        content = json.loads(path.read_text())
        if "success" in content:
            content["success"] = (1 - np.array(content["success"], dtype=float)).tolist()
        path.write_text(json.dumps(content if "success" in content else altered(content)))
    for path in copied.rglob("*.csv"):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        outcomes = [name for name in rows[0] if name in ("value", "first_episode", "last_episode") or "train/" in name]
        rows = [row | {name: 1.1 - float(row[name]) for name in outcomes if row[name]} for row in rows]
        with path.open("w") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    for name, make in TABLES.items():
        old, new = ({*make(where).splitlines()[2:]} for where in (RESULTS, copied))
        assert {row for row in old & new if "in the paper" not in row} == set(), name


def test_pages_are_rewritten(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- table: speed_collection -->\nold\n<!-- end -->\n\nafter\n")
    monkeypatch.setattr("results.tables.pages.pages", lambda: [page])
    main()
    text = page.read_text()
    assert text.startswith("before\n\n<!-- table: speed_collection -->\n| ") and text.endswith(
        "|\n<!-- end -->\n\nafter\n"
    )
    assert "old" not in text and filled(text, RESULTS) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: headlines -->\n<!-- end -->", "There is no table 'headlines'; choose one of headline, "),
        ("<!-- table: headline -->\n", "needs an <!-- end --> of its own"),
        ("<!-- end -->\n", "each end its table"),
        ("<!-- table: toy -->\n<!-- table: toy -->\n<!-- end -->", "needs an <!-- end --> of its own"),
    ],
)
def test_wrong_markers_are_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        filled(text, RESULTS)


def test_a_missing_report_is_refused(copied):
    for path in copied.glob(f"ml10/{HTRMRL[2]}/evaluations/ML10_test_strict_*"):
        path.unlink()
    with pytest.raises(ValueError, match="3 runs have 2 files"):
        TABLES["headline"](copied)


def test_cells_of_the_headline_are_those_of_the_report():
    report = ml10(RESULTS, HTRMRL, *PLAYED["test, `strict`"])
    low, high = report.interval()
    assert f"| {report.success_rate:.2f} ({low:.2f} to {high:.2f}) |" in TABLES["headline"](RESULTS).splitlines()[2]
    assert len(report.runs) == 3 and len({run["sha256"] for run in report.runs}) == 3


@pytest.mark.parametrize("run", RUNS.values())
def test_committed_checkpoints_are_those_of_the_reports(run):
    """By SHA-256, so that a report's command plays the agent that it is of."""
    reports = [EvaluationReport.load(path) for path in RESULTS.glob(f"ml10/{run}/evaluations/*episodes_seed0_*0.json")]
    assert len(reports) >= 6
    for report in reports:
        checkpoint = report.runs[0]["checkpoint"]
        assert hashlib.sha256((ROOT / checkpoint).read_bytes()).hexdigest() == report.runs[0]["sha256"]
        assert checkpoint in report.command


def test_a_table_is_markdown():
    assert markdown(["", "a"], [["x", "1"]]) == "|  | a |\n| --- | --- |\n| x | 1 |"
    assert [cell(-0.001), cell(0.5, (-0.001, 1))] == ["0.00", "0.50 (0.00 to 1.00)"]
