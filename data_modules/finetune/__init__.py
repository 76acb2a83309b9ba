"""Fine-tuning data: a query, its positive, mined hard negatives and teacher scores (paper section 4.2)."""
