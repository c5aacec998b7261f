"""Reference pages made while the site is built: every command, and every configuration key with its comment.

The text comes from ``configs/*.yaml``, the ranges from ``recipes/configuration/rules.py``, the usage of the command
from its own help. The changelog is a page too, once there is one.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from htrmrl_torchrl import cli
from recipes.configuration.compose import CONFIG_DIR
from recipes.configuration.help import comments_of
from recipes.configuration.rules import FREE, NOT_EMPTY, RANGES, flatten

ROOT = Path(__file__).resolve().parents[2]
CHANGELOG = ROOT / "CHANGELOG.md"
GROUP_LEVEL = "##"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Shows the changelog in the navigation where there is one."""
    if CHANGELOG.exists() and config.nav is not None:
        config.nav.append("changelog.md")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    files.append(File.generated(config, "reference/configuration.md", content=configuration_page()))
    if CHANGELOG.exists():
        files.append(File.generated(config, "changelog.md", content=CHANGELOG.read_text(encoding="utf-8")))
    return files


def commands_page() -> str:
    """What each command is for, how it is called, and its keys."""
    usage = (cli.__doc__ or "").partition("::\n\n")[2].partition("\n\n``")[0]
    parts = [
        "# Commands",
        "`htrmrl` runs the recipes that come with the package, in any folder. In a clone, `python recipes/NAME.py` "
        "does the same: `htrmrl evaluate` is `python recipes/evaluate.py`, and `htrmrl run ml10` is "
        "`python recipes/ml10_ppo.py`. Every command explains itself with `--help`.",
        f"```text\n{re.sub('^    ', '', usage, flags=re.MULTILINE)}\n```",
        "Keys of training recipes are on [the next page](configuration.md). "
        '`eval "$(register-python-argcomplete htrmrl)"` completes commands, recipes and keys in bash and zsh.',
        f"{GROUP_LEVEL} Training recipes",
        _table(["recipe", "what it trains", "duration"], map(_training_row, cli.training_recipes())),
    ]
    for tool in cli.TOOLS:
        parts += _tool(tool)
    return "\n\n".join(parts) + "\n"


def configuration_page() -> str:
    """Every key of the training recipes, then what each recipe and encoder sets."""
    parts = [
        "# Configuration keys",
        "All training recipes have the keys of `configs/base.yaml`. Set one on the command line, "
        "`python recipes/ml10_ppo.py seed=2 encoder.window=8`, or in a YAML file of your own "
        "([Train](../guides/train.md)). A wrong key or value ends the run with one sentence before anything is built. "
        "A star marks the keys that [a continued run](../guides/resume_and_faults.md) may change.",
        *_groups(CONFIG_DIR / "base.yaml"),
        f"{GROUP_LEVEL} What each recipe changes",
    ]
    for name, path in cli.training_recipes().items():
        parts += [f"### {name}", _header(path), _keys_table(path, "why")]
    parts.append(f"{GROUP_LEVEL} Encoders")
    parts.append("`encoder=NAME` chooses one of these files in any recipe ([Baselines](../concepts/baselines.md)).")
    for path in sorted((CONFIG_DIR / "encoder").glob("*.yaml")):
        parts += [f"### encoder={path.stem}", _header(path), _keys_table(path, "meaning")]
    return "\n\n".join(parts) + "\n"


def _tool(tool: str) -> Iterator[str]:
    script = ROOT / "recipes" / f"{tool.replace('-', '_')}.py"
    config = CONFIG_DIR / f"{script.stem}.yaml"
    yield f"{GROUP_LEVEL} {tool}"
    if config.exists():
        yield _header(config)
        yield _keys_table(config, "meaning")
    else:  # plot, which reads options instead of keys
        text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
        yield re.sub(r"((?:^    .*\n?)+)", r"```bash\n\1```\n", text, flags=re.MULTILINE).replace(
            "``metrics", "`metrics"
        )


def _training_row(name: str) -> list[str]:
    path = cli.training_recipes()[name]
    return [f"`htrmrl run {name}`", _first_line(path), _facts(path).get("duration", "")]


def _header(path: Path) -> str:
    """A file's first sentence, and what it says of hardware, duration and command."""
    facts = _facts(path)
    return "\n".join([_first_line(path), "", *(f"- {name}: {text}" for name, text in facts.items())])


def _first_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if not line.startswith("# @")).lstrip("# ")


def _facts(path: Path) -> dict[str, str]:
    found = re.findall(r"^# (hardware|duration|command): +(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: re.sub(r"((?:python recipes/|make )[^,]*)", r"`\1`", text) for name, text in found}


def _groups(path: Path) -> Iterator[str]:
    """A section for the keys at the top of a file and for each of its groups."""
    comments, values = comments_of(path), _values(path)
    groups: dict[str, list[str]] = {}
    for key in values:
        groups.setdefault(key.partition(".")[0] if "." in key else "", []).append(key)
    for group, keys in groups.items():
        yield f"{GROUP_LEVEL} {group or 'The run'}"
        if group:
            yield comments[group]
        yield _table(["key", "default", "meaning"], (_row(key, values[key], comments[key]) for key in keys))


def _row(key: str, value: Any, meaning: str) -> list[str]:
    rule = RANGES.get(key.rpartition(".")[2], NOT_EMPTY)
    star = " \\*" if key.startswith(FREE) else ""
    allowed = "" if rule is NOT_EMPTY else f" Allowed: {rule.allowed}."
    return [f"`{key}`{star}", f"`{_plain(value)}`", meaning + allowed]


def _keys_table(path: Path, last: str) -> str:
    comments, values = comments_of(path), _values(path)
    return _table(["key", "value", last], ([f"`{key}`", f"`{_plain(values[key])}`", comments[key]] for key in values))


def _values(path: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {key: value for key, value in flatten(loaded).items() if key != "defaults"}


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:_}"
    return str(value)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """With ``<task>`` and the like as they are written, not as HTML."""
    text = text.replace("|", "\\|")
    return text if text.startswith("`") else text.replace("<", "&lt;")
