"""The command line: one file per verb, arguments to one call to print."""
