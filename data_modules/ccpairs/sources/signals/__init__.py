"""Self-supervised pair construction from raw texts alone: pairs made of one text, or of texts that BM25 brings together."""
