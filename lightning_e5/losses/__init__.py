"""Losses: tensors in, tensors out; no model, tokenizer, logger or process group."""

import lightning_e5.vector_math  # noqa: F401 - made ready before any thread computes
