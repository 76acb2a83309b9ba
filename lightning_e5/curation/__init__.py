"""A trained encoder and exact rules make better rows: filters, negatives, teacher scores, decontamination."""
