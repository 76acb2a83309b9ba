"""A pool of pairs from its sources: parts, shards, merge."""
