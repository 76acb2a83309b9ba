"""Search over embeddings: the exact index, which referees every other, and retrieval with an embedder."""
