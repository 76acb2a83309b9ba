"""One command, under eight minutes, that says what a GPU gives: equality with the CPU, speed beside the peers, projected hours."""
