"""Writes the numbers of episodes and curves as CSV."""
