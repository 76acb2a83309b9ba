"""Losses: tensors in, tensors out; no model, tokenizer, logger or process group."""
