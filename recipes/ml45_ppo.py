"""Meta-train HTrMRL on Meta-World ML45 with PPO: ``python recipes/ml45_ppo.py [key=value ...]``."""

if __name__ == "__main__":  # environment workers import this file as well, and need none of it
    from recipes.configuration.start import start_training

    start_training("ml45_ppo")
