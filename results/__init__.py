"""Evidence for the numbers in the documentation; README.md says what lies where."""
