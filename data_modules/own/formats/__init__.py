"""Document formats, each read to the same blocks: headings, prose, code, tables."""
