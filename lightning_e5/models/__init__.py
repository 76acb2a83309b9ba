"""Encoders: tokens in, embeddings or logits out."""
