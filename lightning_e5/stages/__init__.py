"""One function per stage: the composition root, the only place where objects meet."""
