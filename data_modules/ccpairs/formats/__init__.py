"""File formats and markup that the sources of CCPairs are read from."""
