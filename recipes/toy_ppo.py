"""Meta-train HTrMRL on the toy environment with PPO: ``python recipes/toy_ppo.py [key=value ...]``."""

from recipes._cli import run_recipe
from recipes.ppo import train

if __name__ == "__main__":
    run_recipe(train, config_name="toy_ppo")
