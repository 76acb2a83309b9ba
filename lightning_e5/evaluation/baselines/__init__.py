"""What a trained encoder has to beat: BM25 and averaged word vectors."""
