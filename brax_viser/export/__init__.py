"""Writes episodes into files that others can look at: HTML, video, pictures, numbers."""
