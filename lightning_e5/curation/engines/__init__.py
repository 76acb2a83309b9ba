"""Where work that is cut into parts is done: here, in processes, on a Ray cluster."""
