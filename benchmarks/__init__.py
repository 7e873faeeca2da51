"""Programs that made the figures and pictures of the documentation."""
