"""Experiment and ablation YAMLs: loaded, overridden, checked, instantiated."""
