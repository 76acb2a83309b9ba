"""Measurements: ours and the peer, alternating in one process, on real text."""

from lightning_e5.threads import wait_briefly

wait_briefly()  # as under the command line; before a module here imports torch
