"""Meta-train HTrMRL on Meta-World ML45 with PPO: ``python recipes/ml45_ppo.py [key=value ...]``."""

from recipes._cli import run_recipe
from recipes.ppo import train

if __name__ == "__main__":
    run_recipe(train, config_name="ml45_ppo")
