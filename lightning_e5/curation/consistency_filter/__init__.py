"""Consistency-based filtering (paper section 3.1): which pairs a model trained on all of them ranks high."""
