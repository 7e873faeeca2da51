"""One robot in its own MuJoCo simulation, driven by the policy or by the user."""
