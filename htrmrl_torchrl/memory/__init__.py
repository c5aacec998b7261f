"""The agent's memory of a trial while it acts, and the choice of windows that a decision sees."""
