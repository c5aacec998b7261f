"""Training scripts: they import the library, the library never imports them (``tests/test_layout.py`` says so).

Recipes are not part of the wheel. Clone the project, ``pip install -e .``, and run them as scripts:
``python recipes/ml10_ppo.py key=value ...``.
"""
