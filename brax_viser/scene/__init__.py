"""Draws a MuJoCo model and its link poses as a 3-D scene. Imports no jax."""
