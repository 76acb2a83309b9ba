"""Judging an embedder: data, metrics, tasks, significance and baselines."""
