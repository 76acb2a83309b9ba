"""Duplicates, and overlap with the texts of evaluations."""
