"""Meta-train HTrMRL on HalfCheetah or Ant with PPO: ``python recipes/locomotion_ppo.py [key=value ...]``."""

if __name__ == "__main__":  # environment workers import this file as well, and need none of it
    from recipes.configuration.start import start_training

    start_training("locomotion_ppo")
