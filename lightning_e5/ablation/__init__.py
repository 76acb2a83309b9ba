"""Several runs side by side; talks to stages through run directories only."""
