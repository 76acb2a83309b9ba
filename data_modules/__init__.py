"""Rows become batches: sources, data order, token caches and LightningDataModules. Imports layer 0 only."""
