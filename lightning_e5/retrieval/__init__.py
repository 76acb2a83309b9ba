"""Search over embeddings: the exact index, which the others are compared with, and retrieval with an embedder."""
