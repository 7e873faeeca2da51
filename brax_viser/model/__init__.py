"""What of an `mujoco.MjModel` can be drawn, and how: arrays and meshes, without a page."""
