"""What a run records of itself: its directory, its environment, Weights & Biases."""
