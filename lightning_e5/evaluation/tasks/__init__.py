"""Tasks beside retrieval: STS, classification, zero-shot, clustering, pair classification, reranking."""
