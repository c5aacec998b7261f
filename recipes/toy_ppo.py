"""Meta-train HTrMRL on the toy environment with PPO: ``python recipes/toy_ppo.py [key=value ...]``."""

if __name__ == "__main__":  # environment workers import this file as well, and need none of it
    from recipes.configuration.start import start_training

    start_training("toy_ppo")
