"""Turns an `mujoco.MjModel` into arrays and meshes that can be drawn, without a page."""
