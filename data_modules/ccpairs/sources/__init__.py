"""One file per source of pairs; each yields TextPair rows and streams."""
