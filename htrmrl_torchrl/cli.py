"""The command ``htrmrl``: the recipes that come with the package, in any folder.

::

    htrmrl ls                          list the training recipes
    htrmrl run ml10 seed=2             train; the same command continues a run that was stopped
    htrmrl run ml10 --help             every key, what it means, and its default
    htrmrl cp ml10 my_ml10.yaml        copy a configuration, to edit it ...
    htrmrl run my_ml10.yaml            ... and train with it
    htrmrl evaluate checkpoint=...     and look-inside, ablate, plot, export, video, benchmark; each has --help

``eval "$(register-python-argcomplete htrmrl)"`` completes commands, recipes and keys in bash and zsh.
"""

import argparse
import os
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from htrmrl_torchrl.runs import console

TOOLS = ("evaluate", "look-inside", "ablate", "plot", "export", "video", "benchmark")
_SUFFIX = "_ppo"  # of the files of training recipes


def shipped() -> Path:
    """The folder with ``recipes/`` and ``configs/``: inside an installed wheel, or the clone that is installed."""
    package = Path(__file__).resolve().parent
    return package / "_shipped" if (package / "_shipped").is_dir() else package.parent


def training_recipes() -> dict[str, Path]:
    """Short names of the training recipes, as in ``htrmrl run ml10``, and their configuration files."""
    files = sorted((shipped() / "configs").glob(f"*{_SUFFIX}.yaml"))
    return {path.stem.removesuffix(_SUFFIX): path for path in files}


def main() -> None:
    """Entry point of the command; ends with exit code 2 and one sentence where it cannot do what was asked."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for words
        import argcomplete

        argcomplete.autocomplete(_parser())
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in TOOLS:
        _run(command.replace("-", "_"), arguments, program=[command])
    elif command == "run" and arguments and not arguments[0].startswith("-"):
        _train(*arguments)
    else:
        asked = _parser().parse_args([command, *arguments])
        if asked.command == "ls":
            print(_listing())
        else:
            _copy(asked.recipe, Path(asked.target))


def _train(recipe: str, *arguments: str) -> None:
    if recipe.endswith((".yaml", ".yml")):
        _run("train", [recipe, *arguments], program=["run"])
    else:
        name = recipe.removesuffix(_SUFFIX)
        _known(name)
        _run(f"{name}{_SUFFIX}", arguments, program=["run", name])


def _run(script: str, arguments: Sequence[str], *, program: Sequence[str]) -> None:
    """Runs a file of ``recipes/`` as ``python recipes/<script>.py`` does."""
    console.program[:] = ["htrmrl", *program]
    # `recipes` first; code of the user's own, named by a dotted path, in the current folder too. Workers inherit both.
    sys.path[:] = [str(shipped()), *sys.path, os.getcwd()]
    sys.argv = [str(shipped() / "recipes" / f"{script}.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _copy(recipe: str, target: Path) -> None:
    """Copies a configuration; the runs of the copy have folders of their own."""
    text = _known(recipe.removesuffix(_SUFFIX)).read_text(encoding="utf-8")
    if target.suffix != ".yaml":
        _fail(f"the target is '{target}' but must end with .yaml, for instance my_{recipe}.yaml")
    text = re.sub(r"^run_dir: runs/\w+_seed", f"run_dir: runs/{target.stem}_seed", text, flags=re.MULTILINE)
    text = re.sub(r"^# command: .*", f"# command:  htrmrl run {target.name}", text, flags=re.MULTILINE)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        _fail(f"'{target}' exists: choose another name, or remove it first")
    except OSError as error:
        _fail(f"'{target}' cannot be written ({error.strerror}): choose another folder")
    print(f"{target}: edit it, then htrmrl run {target}")


def _known(name: str) -> Path:
    recipes = training_recipes()
    if name not in recipes:
        _fail(f"the recipe is {name!r} but must be {', '.join(recipes)} or a YAML file of your own (htrmrl cp)")
    return recipes[name]


def _fail(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def _listing() -> str:
    """Each training recipe with the first line of its configuration."""
    recipes = training_recipes()
    width = max(map(len, recipes))
    first = {name: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for name, path in recipes.items()}
    return "\n".join(f"{name:<{width}}  {line}" for name, line in first.items())


# ------------------------------------------------------------------------------------------------ help and completion


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="htrmrl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="<command>")
    commands.add_parser("ls", help="list the training recipes")
    copy = commands.add_parser("cp", help="copy the configuration of a training recipe")
    copy.add_argument("recipe", choices=training_recipes())
    copy.add_argument("target", metavar="my_recipe.yaml")
    run = commands.add_parser("run", help="train with a recipe, or with a YAML file of your own")
    _completed(run.add_argument("recipe"), [*training_recipes(), *map(str, Path().glob("*.yaml"))])
    _completed(run.add_argument("overrides", nargs="*", metavar="key=value"), [*_keys("base"), *_encoders()])
    for tool in TOOLS:
        # Their own --help is longer; here each is one line.
        shown = commands.add_parser(tool, help=_purpose(tool), add_help=False)
        _completed(shown.add_argument("overrides", nargs="*", metavar="key=value"), [*_keys(tool.replace("-", "_"))])
    return parser


def _completed(argument: argparse.Action, words: Sequence[str]) -> None:
    argument.completer = lambda **_: words  # type: ignore[attr-defined]


def _purpose(tool: str) -> str:
    """The first words of a recipe's docstring, up to its example."""
    text = (shipped() / "recipes" / f"{tool.replace('-', '_')}.py").read_text(encoding="utf-8")
    return re.split(r"[:.]", text.removeprefix('"""'), maxsplit=1)[0].lower()


def _encoders() -> Iterator[str]:
    return (f"encoder={path.stem}" for path in sorted((shipped() / "configs/encoder").glob("*.yaml")))


def _keys(config: str) -> Iterator[str]:
    """``key=`` for each key of a configuration; none of a recipe without one (plot)."""
    path = shipped() / "configs" / f"{config}.yaml"
    nodes: list[tuple[str, Any]] = []
    if path.is_file():
        nodes = list(yaml.safe_load(path.read_text(encoding="utf-8")).items())
    for key, value in nodes:  # grows while it is read
        if isinstance(value, dict):
            nodes += [(f"{key}.{name}", inner) for name, inner in value.items()]
        elif key != "defaults":
            yield f"{key}="


if __name__ == "__main__":
    main()
