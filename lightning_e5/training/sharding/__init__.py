"""Fully sharded data parallel for gradient-cached steps: the model as a whole, or layer by layer."""
