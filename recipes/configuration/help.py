"""``--help`` of a recipe: each key with the comment above it in its YAML file."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from htrmrl_torchrl.runs.console import command_line
from recipes.configuration.rules import flatten


def usage(
    purpose: str, config: DictConfig, groups: Mapping[str, Sequence[str]], *, config_name: str, folder: Path
) -> str:
    """The help of a recipe with its ``purpose``, from its composed, unresolved ``config`` and the comments in
    ``folder/<config_name>.yaml``; ``groups`` names the files to choose from for each group of keys.
    """
    sentences = comments_of(folder / f"{config_name}.yaml")
    if "encoder" in config:  # a training recipe: its own file only says why its values differ
        sentences |= comments_of(folder / "base.yaml")
        sentences |= {f"encoder.{key}": text for key, text in comments_of(folder / "encoder/htrmrl.yaml").items()}
    lines = [
        f"usage: {command_line(())} [--help] [--cfg] [--config-dir <folder>] [key=value ...]",
        "",
        purpose,
        "",
        *(f"{key}=<{'|'.join(names)}> replaces that group of keys." for key, names in groups.items() if names),
        "--cfg shows the resolved configuration and stops.",
        *(
            ["-m runs one configuration after the other, as in -m seed=1,2 (Hydra's multirun)."]
            if "encoder" in config
            else []
        ),
        "--config-dir adds a folder with YAML files of your own, for instance encoder/mine.yaml.",
        f"Keys and defaults (the files are in {folder}):",
    ]
    for key, value in flatten(OmegaConf.to_container(config)).items():  # type: ignore[arg-type]
        lines += ["", f"{key}={'null' if value is None else value}"]
        lines += textwrap.wrap(sentences.get(key, ""), 100, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def comments_of(path: Path) -> dict[str, str]:
    """Comments above the keys of a YAML file, by dotted key."""
    found, comment, parents = dict[str, str](), list[str](), list[str]()
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        if line.lstrip().startswith("#"):
            comment.append(line.strip(" #"))
            continue
        if key := re.match(r"( *)(\w+):", line):
            parents = [*parents[: len(key[1]) // 2], key[2]]
            found[".".join(parents)] = " ".join(comment)
        comment = []
    return found
