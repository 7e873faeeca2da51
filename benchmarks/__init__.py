"""What the figures and pictures of the documentation were made with."""
