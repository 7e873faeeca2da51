"""Lists the drivers of a sandbox's robot and the limits of changes to its physics."""

DRIVERS = ("policy", "replay", "still", "limp")
"""What moves the robot: the policy; the controls of its last steps in the training, in a loop; its
current controls, kept constant; or nothing, as if the motors were cut off."""

GRAVITY, FRICTION, MASS = (0.0, 2.0), (0.0, 3.0), (0.2, 5.0)
"""(minimum, maximum) of the factors."""
