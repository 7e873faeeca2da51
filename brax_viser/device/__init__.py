"""Runs in the compiled step: keeps the wrapper's record, and calls the host."""
