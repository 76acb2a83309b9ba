"""Several processes: collectives, launching, ranks, devices and precision."""
