"""The README's Python is run as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def execute(code, folder):
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)


def test_embedding_is_short_and_trains_on_pendulum(tmp_path):
    (code,) = (block for block in BLOCKS if "Pendulum" in block)
    assert len(code.splitlines()) <= 25
    assert "recipes" not in code
    done = execute(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"return -\d+", done.stdout)) == 3


def test_a_trained_agent_is_used_as_shown(tmp_path):
    recipe = [sys.executable, str(ROOT / "recipes" / "toy_ppo.py"), "run_dir=run", "total_frames=1536"]
    subprocess.run(recipe, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    (code,) = (block for block in BLOCKS if "load_networks" in block)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    done = execute(code.replace("CHECKPOINT", str(checkpoint)), tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"tensor\(\[.*\]\)", done.stdout)


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    missing = [target for target in targets if not target.startswith("http") and not (ROOT / target).exists()]
    assert not missing


@pytest.mark.parametrize("placeholder", ["QUICKSTART_OUTPUT", "RESULTS_TABLE", "TODO"])
def test_nothing_is_left_to_fill_in(placeholder):
    assert placeholder not in (ROOT / "README.md").read_text()
