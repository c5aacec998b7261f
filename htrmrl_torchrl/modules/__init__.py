"""Networks and memory: transformer layers, hierarchical encoder, episodic memory, heads."""
