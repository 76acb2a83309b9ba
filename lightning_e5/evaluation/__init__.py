"""Evaluating models: data, metrics, tasks, significance and baselines."""
