"""CCPairs: (query, passage) text pairs mined from structured text (paper section 3)."""
