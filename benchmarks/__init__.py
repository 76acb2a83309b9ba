"""Measurements: ours and the peer, alternating in one process, on real text."""
