"""Results as tables: of one evaluation, of an ablation, and the summary of a run."""
