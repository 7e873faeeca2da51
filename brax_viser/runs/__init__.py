"""Keeps what is recorded of a training: complete episodes, curves and policies."""
