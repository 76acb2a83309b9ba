"""Retrieval on test collections in the layout of BEIR, by its rules."""
