"""Inspection of trained networks: attention of both levels, memory contents, and task embeddings."""
