"""Look inside a trained agent: ``python recipes/inspect.py checkpoint=RUN_OR_CHECKPOINT split=test``.

Python puts the folder of a script first on its path. So where any recipe runs as a script, ``import inspect`` (of
torch, dataclasses, ...) finds this file, which then hands over to the module of the standard library that is meant.
"""

if __name__ == "inspect":
    import os
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("inspect", [os.path.dirname(os.__file__)])
    assert spec is not None and spec.loader is not None
    sys.modules["inspect"] = module_from_spec(spec)  # what the import system then hands out, in place of this file
    spec.loader.exec_module(sys.modules["inspect"])
elif __name__ == "__main__":  # environment workers import this file as well, and need none of it
    from recipes._cli import run_recipe
    from recipes._inspection import check, run
    from recipes._signals import ending_at_once

    with ending_at_once():
        run_recipe(run, config_name="inspect", check=check)
