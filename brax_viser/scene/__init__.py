"""From a MuJoCo model and link poses to a 3-D scene. Imports no jax."""
