"""Meta-train HTrMRL on Meta-World ML10 with PPO: ``python recipes/ml10_ppo.py [key=value ...]``."""

if __name__ == "__main__":  # environment workers import this file as well, and need none of it
    from recipes.configuration.start import start_training

    start_training("ml10_ppo")
