"""Plain torch mechanisms of training; no Lightning here."""
