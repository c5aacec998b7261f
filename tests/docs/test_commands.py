"""Every command that the README and the documentation show is one: known name, known keys, allowed values."""

import re
from pathlib import Path

import pytest

from htrmrl_torchrl import cli
from recipes import plot
from recipes.configuration.compose import UserError, load_config
from recipes.configuration.rules import check_values, flatten
from tests.docs.pages import PAGES, ROOT, commands, name_of

OTHERS = {"pip", "source", "tensorboard", "eval", "git", "cd", "ls", "hf"}
WITH_COMMANDS = [page for page in PAGES if any(commands(page))]


def check(words: list[str]) -> None:
    """Raise UserError or AssertionError unless these are the words of a command that exists."""
    program, *rest = words
    if program == "make":
        assert re.search(rf"^{re.escape(rest[0])}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    elif program == "htrmrl":
        check_htrmrl(*rest)
    elif program == "python" and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).is_file(), words
        folder, name = Path(rest[0]).parent.name, Path(rest[0]).stem
        if folder == "recipes":
            command = ["run", name.removesuffix("_ppo")] if name.endswith("_ppo") else [name.replace("_", "-")]
            check_htrmrl(*command, *rest[1:])
    elif program == "torchrun":  # options and their values, then the script
        script = next(index for index, word in enumerate(rest) if word.endswith(".py"))
        check(["python", *rest[script:]])
    elif program == "python":
        assert rest[0] in ("-c", "-m"), words
    else:
        assert program in OTHERS, words


def check_htrmrl(command: str, *arguments: str) -> None:
    if command in ("ls", "cp"):
        assert command == "ls" or (arguments[0] in cli.training_recipes() and arguments[1].endswith(".yaml"))
    elif command == "run":
        recipe, *overrides = arguments
        assert recipe in cli.training_recipes() or recipe.endswith(".yaml"), arguments
        check_overrides("ml10_ppo" if recipe.endswith(".yaml") else f"{recipe}_ppo", overrides)
    elif command == "plot":
        plot.parse(arguments)
    else:
        assert command in cli.TOOLS, command
        check_overrides(command.replace("-", "_"), list(arguments))


def check_overrides(config: str, words: list[str]) -> None:
    options = [word for word in words if word.startswith("-")]
    assert {*options} <= {"--help", "--cfg", "--config-dir", "-m"}, options
    if "--config-dir" in words:  # a folder of the reader's: its encoder is not there
        words = [word for word in words if not word.startswith("encoder=")]
        del words[words.index("--config-dir") + 1]
    overrides = [word for word in words if not word.startswith("-")]
    if config == "ablate" or "-m" in words:
        check_swept(config, overrides)
    else:
        load_config(config, overrides, check_values)


def check_swept(config: str, overrides: list[str]) -> None:
    """Several values of a key, so only the keys are checked."""
    asked = [override.partition("=")[0] for override in overrides]
    recipe = next((word.removeprefix("recipe=") for word in overrides if word.startswith("recipe=")), config)
    known = {"encoder", "seed"} if config == "ablate" else {"encoder"}
    for name in {config, recipe}:
        known |= {*flatten(load_config(name, (), lambda *_: None))}
    assert {*asked} <= known, {*asked} - known


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_commands_of_a_page_exist(page: Path) -> None:
    for words in commands(page):
        try:
            check(words)
        except UserError as error:
            raise AssertionError(f"{' '.join(words)}: {error}") from error


@pytest.mark.parametrize(
    "words",
    [
        "htrmrl fly",
        "htrmrl run nothing",
        "htrmrl run toy env.number=3",
        "htrmrl run toy seed=x",
        "htrmrl evaluate splits=test",
        "htrmrl plot runs/a --oot b.png",
        "htrmrl ablate recipe=toy_ppo encoder.windows=1,2",
        "python recipes/ml11_ppo.py",
        "make coffee",
        "rm -rf runs",
    ],
)
def test_what_does_not_exist_is_found(words: str) -> None:
    with pytest.raises((AssertionError, UserError)):
        check(words.split())
