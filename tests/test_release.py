"""What a release consists of agrees with itself: versions, changelog, hooks, templates, the image."""

import os
import re
import shutil
import subprocess
import tomllib
import uuid
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_place_names_the_same_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    headings = re.findall(
        r"^## \[(.+)\](?: - (.+))?$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == PROJECT["version"] == citation["version"]
    assert all(re.fullmatch(r"\d{4}-\d{2}-\d{2}", day) for _, day in headings[1:])


def test_the_changelog_has_known_sections_only():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    known = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert {*re.findall(r"^### (.+)$", text, re.MULTILINE)} <= known


def test_the_hooks_are_the_checks_of_the_makefile():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text()
    for hook in hooks:
        check = hook["entry"].removeprefix(".venv/bin/python ").removesuffix(" --force-exclude")
        assert f"$(PY) {check}" in makefile and hook["language"] == "system"


def test_issue_templates_have_a_header_that_code_hosts_read():
    templates = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"))
    assert templates
    for path in templates:
        _, header, body = path.read_text(encoding="utf-8").split("---\n", 2)
        assert {"name", "about"} <= yaml.safe_load(header).keys() and body.strip()


def copied():
    """What the Dockerfile copies from the clone."""
    lines = re.findall(r"^COPY (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return [name for line in lines for name in line.split()[:-1]]


def test_the_image_is_made_of_files_that_are_there_and_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for name in copied():
        assert (ROOT / name).exists() and f"!{name}" in ignored
    extras = re.search(r"'\.\[(.+)\]'", (ROOT / "Dockerfile").read_text())[1].split(",")
    assert {*extras} <= PROJECT["optional-dependencies"].keys()


def docker_is_away():
    """Why no image can be built here, or an empty string."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else f"docker does not answer: {done.stderr.strip().splitlines()[-1:]}"


@pytest.mark.slow
def test_the_image_is_built_and_trains(tmp_path):
    if reason := docker_is_away():
        pytest.skip(reason)
    tag = f"htrmrl-test-{uuid.uuid4().hex[:8]}"

    def docker(*arguments):
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        docker("build", "-t", tag, str(ROOT))
        assert "toy" in docker("run", "--rm", tag, "ls")
        tiny = ["env.num_envs=8", "loss.minibatch_frames=96", "total_frames=192", "env.num_workers=2"]
        volume = ["-v", f"{tmp_path}:/agent/runs", "--user", f"{os.getuid()}:{os.getgid()}"]
        said = docker("run", "--rm", *volume, tag, "run", "toy", *tiny)
        assert "finished, everything is in runs/toy_ppo_seed1" in said
        assert (tmp_path / "toy_ppo_seed1" / "summary.json").exists()
    finally:
        subprocess.run(["docker", "rmi", "-f", tag], capture_output=True)
