"""One robot in a MuJoCo of its own, driven by the policy or by a person."""
