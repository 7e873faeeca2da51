"""MuJoCo simulations beside the training's environments."""
