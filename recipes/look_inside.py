"""Look inside a trained agent: ``python recipes/look_inside.py checkpoint=RUN_OR_CHECKPOINT split=test``."""

from htrmrl_torchrl.runs.signals import ending_at_once

if __name__ == "__main__":  # environment workers import this file as well, and need none of it
    from recipes.configuration.compose import run_recipe
    from recipes.inside.play import check, run

    with ending_at_once():
        run_recipe(run, config_name="look_inside", check=check)
