"""Keeps the episodes of one training: in memory, and in its run directory."""
