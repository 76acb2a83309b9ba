"""Hard negatives and teacher scores (paper section 3.3)."""
