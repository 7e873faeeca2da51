"""The spring that drags a body of a sandbox, and the check that its simulation is sound."""

import math

import mujoco
import numpy as np

DRAG_FREQUENCY = 12.0
"""rad/s, of a robot that hangs on the dragging spring. At rest it hangs 7 cm below the target."""

DRAG_LIMIT = 5 * 9.81
"""N/kg, largest dragging force per mass of the robot: enough to lift it and toss it about."""

RUNAWAY = 1e5
"""m/s or rad/s: a sound simulation never reaches this speed. MuJoCo itself gives up at 1e10, with a
message on the terminal and in a file."""

_BAD = (
    int(mujoco.mjtWarning.mjWARN_BADQPOS),
    int(mujoco.mjtWarning.mjWARN_BADQVEL),
    int(mujoco.mjtWarning.mjWARN_BADQACC),
)


def pull(
    model: mujoco.MjModel, data: mujoco.MjData, body: int, point: np.ndarray, target: np.ndarray
) -> None:
    """Adds to `qfrc_applied` the dragging force m w^2 x - 2 m w v, of the robot's mass m: critical
    damping for the robot as a whole.

    A spring that lifts the whole robot would fling a light foot about. So the force is taken at
    the end of the substep, as by an implicit integrator, with the body's effective mass at this
    point.

    Args:
        model: of the robot.
        data: its state before the substep; positions of bodies are updated.
        body: its index, 1 or more.
        point: float [3], m, in the body's frame: where the spring is attached.
        target: float [3], m, in the world frame.
    """
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    at = data.xpos[body] + data.xmat[body].reshape(3, 3) @ point
    jacobian = np.zeros((3, model.nv))
    mujoco.mj_jac(model, data, jacobian, None, at, body)
    per_force = np.zeros_like(jacobian)
    mujoco.mj_solveM(model, data, per_force, jacobian)
    mobility = jacobian @ per_force.T  # 1/kg
    velocity, h = jacobian @ data.qvel, model.opt.timestep
    mass = float(model.body_subtreemass[model.body_rootid[body]])
    stiffness, damping = mass * DRAG_FREQUENCY**2, 2 * mass * DRAG_FREQUENCY
    wanted = stiffness * (target - at - h * velocity) - damping * velocity
    force = np.linalg.solve(np.eye(3) + h * (damping + h * stiffness) * mobility, wanted)
    force *= min(1.0, mass * DRAG_LIMIT / max(float(np.linalg.norm(force)), 1e-9))
    mujoco.mj_applyFT(model, data, force, np.zeros(3), at, body, data.qfrc_applied)


def runaway(data: mujoco.MjData) -> str | None:
    """Says in words how fast a diverged simulation moves; None if it is sound."""
    fastest = np.abs(data.qvel).max(initial=0.0)
    # MuJoCo's own warnings of accelerations come too late to be the only check. `fastest` is
    # compared by `<`, so a NaN counts as diverged.
    fine = fastest < RUNAWAY and np.isfinite(data.qpos).all() and np.isfinite(data.qacc).all()
    if fine and not any(data.warning[kind].number for kind in _BAD):
        return None
    return f"something moves at {fastest:.0e} m/s or rad/s" if fastest < math.inf else "NaN"
