"""Train with a configuration of your own: ``python recipes/train.py my_ml10.yaml [key=value ...]``."""

if __name__ == "__main__":  # environment workers import this file as well, and need none of it
    from recipes.configuration.start import start_training_of_file

    start_training_of_file()
