"""Figures of runs and ablations."""
