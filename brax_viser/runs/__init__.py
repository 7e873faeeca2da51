"""Records episodes of a training, and keeps them: in memory, and in its run directory."""
