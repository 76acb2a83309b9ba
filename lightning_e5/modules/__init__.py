"""LightningModules, one per training scheme, and how they are driven."""
