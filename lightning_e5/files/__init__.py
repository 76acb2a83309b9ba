"""Files: written whole or not at all, read line by line and row by row, with errors that name the place."""
