"""Meta-train HTrMRL on one Meta-World task (ML1) with PPO: ``python recipes/ml1_ppo.py [key=value ...]``."""

if __name__ == "__main__":  # environment workers import this file as well, and need none of it
    from recipes.configuration.start import start_training

    start_training("ml1_ppo")
