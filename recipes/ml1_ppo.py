"""Meta-train HTrMRL on one Meta-World task (ML1) with PPO: ``python recipes/ml1_ppo.py [key=value ...]``."""

from recipes._cli import run_recipe
from recipes.ppo import train

if __name__ == "__main__":
    run_recipe(train, config_name="ml1_ppo")
