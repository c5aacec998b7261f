"""What an agent remembers of a trial while it acts, which windows of it a decision sees, and how these are drawn."""
