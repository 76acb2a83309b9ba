"""Results as tables, pages and notebooks; knows no training code."""
