"""Finished runs, read from their files into dataclasses."""
