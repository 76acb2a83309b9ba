"""What a trained encoder has to beat: lexical search, topic models, averaged word vectors, other people's encoders."""
