"""What drives a sandbox's robot, and how far its physics can be changed."""

DRIVERS = ("policy", "replay", "still", "limp")
"""What moves the robot: the policy; the controls of its last steps in the training, over and over;
the controls that it has right now, for good; or nothing, as if its motors had been cut off."""

GRAVITY, FRICTION, MASS = (0.0, 2.0), (0.0, 3.0), (0.2, 5.0)
"""Limits of the factors."""
