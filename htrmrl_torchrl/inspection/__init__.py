"""Looking inside: where both levels attend, what the memory holds, and how tasks lie in the space of embeddings."""
