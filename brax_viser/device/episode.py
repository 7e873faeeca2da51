"""Keeps the record of each environment: when to ask the host again, and how its episodes go."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from brax_viser.records.protocol import FRESH, NEVER, NO_ROW, UNKNOWN

COUNTERS = frozenset(
    "steps step step_count step_counter num_steps elapsed_steps episode_steps episode_step "
    "episode_length timestep time_step count counter t time".split()
)
"""Names under which an environment may count the steps of its episode, starting at any number."""

NEIGHBOURS = (1, 2)
"""Each record is also stored with the environments this many indices further: see `replaced`."""

NUMBERS = 5
"""Fields of a record that are stored with the neighbours, besides the pose."""

TOUCH = 1e-4
"""Tolerance for equal coordinates, absolute in rad or m plus relative to their size: XLA may
round two computations of the same value differently."""

SAME = 1e-6
"""The same tolerance for values that were copied, not computed again."""

LITTLE_ODD, ODD, VERY_ODD = 1.2, 2.0, 4.0
"""Limits on how far a robot has moved in a step beyond its mean velocity, in multiples of the
distance that its velocities explain; a velocity that only rises or only falls within the step stays
within 1. Above the first, another sign of a reset is needed as well. Above the last, the robot was
put somewhere else, even if not to where a reset would put it."""


class EpisodeLog(NamedTuple):
    """One record per environment, under one key of `state.info`.

    It is kept on the device, which alone sees every step of every environment: the host requests
    some of them at some steps, and still gets complete returns.
    """

    countdown: jax.Array  # int32 [*batch]: steps to skip before the host is asked, or FRESH
    answered_by: jax.Array  # int32 [*batch]: stamp of the `Callbacks` that set the countdown
    granted_rows: jax.Array  # int32 [*batch], or NO_ROW: see `emit.emit`
    episode_return: jax.Array  # float32 [*batch]: rewards of the episode so far, summed
    # int32 [*batch]: env steps of the episode so far. Below 0 (counting up from
    # `protocol.UNKNOWN`) its beginning was not seen, and its return misses the steps before.
    episode_length: jax.Array
    since_termination: jax.Array  # int32 [*batch]: env steps; 0 after the step that terminates
    trainer_steps: jax.Array  # int32 [*batch]: the trainer's own step count, as last seen
    finished_return: jax.Array  # float32 [*batch]: of the last finished episode, or 0
    finished_length: jax.Array  # int32 [*batch]: its env steps; 0: none is known
    last_pos: jax.Array  # float32 [*batch, L, 3]: m, at the last termination, or 0
    last_rot: jax.Array  # float32 [*batch, L, 4]: wxyz, likewise
    seen: jax.Array  # float32 [*batch, C]: coordinates after the last step, see `Motion`
    first: jax.Array  # float32 [*batch, C]: coordinates after the reset
    was_reset: jax.Array  # int32 [*batch]: 1: the env was reset within the last step
    # float32 [*batch, N, NUMBERS + 7 L]: records of the environments `NEIGHBOURS` indices before.
    spare: jax.Array
    nonfinite: jax.Array  # int32 [*batch]: fields known not to be finite: see `protocol.REWARD`


class Motion(NamedTuple):
    """The place and speed of environments in C coordinates: hinges, slides, and positions of free
    bodies. Rotations of balls and free bodies are left out."""

    place: jax.Array  # float32 [*batch, C], rad or m
    speed: jax.Array  # float32 [*batch, C], rad/s or m/s
    time: jax.Array | None  # float [*batch], s, if the physics keeps its time


class Coordinates:
    """Selects the parts of a model's qpos and qvel that make a `Motion`."""

    def __init__(self, model: mujoco.MjModel):
        place, speed, turns = [], [], []
        free, ball, hinge = (
            int(kind)
            for kind in (
                mujoco.mjtJoint.mjJNT_FREE,
                mujoco.mjtJoint.mjJNT_BALL,
                mujoco.mjtJoint.mjJNT_HINGE,
            )
        )
        for joint, kind in enumerate(model.jnt_type.tolist()):
            for i in range({free: 3, ball: 0}.get(kind, 1)):
                place.append(model.jnt_qposadr[joint] + i)
                speed.append(model.jnt_dofadr[joint] + i)
                turns.append(kind == hinge)
        self.turns = tuple(turns)  # whether each coordinate is an angle
        self._place, self._speed = _slices(place), _slices(speed)
        self._nq = model.nq

    def motion(self, qpos: jax.Array, qvel: jax.Array, time: jax.Array | None) -> Motion:
        """Takes arrays [*batch, nq] and [*batch, nv]. C is 0 if nq is not that of the model."""
        known = qpos.shape[-1:] == (self._nq,)
        place, speed = (self._place, self._speed) if known else ((), ())
        return Motion(_taken(qpos, place), _taken(qvel, speed), time)

    def apart(self, one: jax.Array, other: jax.Array) -> jax.Array:
        """Returns float32 [*batch, C]: `other - one`, angles by the shorter way, because some
        backends keep them within half a turn."""
        way, turn = other - one, 2 * math.pi
        count = way.shape[-1]
        turned = way - turn * jnp.round(way / turn)
        return jnp.where(jnp.asarray(self.turns[:count], bool), turned, way)


def _slices(index: list[int]) -> list[slice]:
    """Returns an index as slices, because XLA runs a gather as an operation of its own."""
    starts = [i for i in range(len(index)) if not i or index[i] != index[i - 1] + 1]
    ends = [*starts[1:], len(index)]
    return [slice(index[i], index[j - 1] + 1) for i, j in zip(starts, ends, strict=True)]


def _taken(x: jax.Array, slices: Sequence[slice]) -> jax.Array:
    parts = [x[..., :0], *(x[..., part] for part in slices)]
    taken = jnp.concatenate(parts[len(parts) > 1 :], axis=-1)
    return jax.lax.stop_gradient(taken).astype(jnp.float32)


class Evidence(NamedTuple):
    """Signs in the physics that an episode begins, bool [*batch] each."""

    replaced: jax.Array  # the physics was replaced between the last step and this one
    was_reset: jax.Array  # within this step the environment was put where a reset puts it
    doubtful: jax.Array  # within this step it was put somewhere, perhaps not by a reset


def first_log(done: jax.Array, source: int, motion: Motion, num_links: int) -> EpisodeLog:
    """Returns the record of environments that have just been reset.

    Args:
        done: has their batch shape.
        source: stamp of the `Callbacks` that will be asked.
        motion: after the reset.
        num_links: L.
    """

    def full(value: float, dtype: jnp.dtype = jnp.int32, *shape: int) -> jax.Array:
        return jnp.full((*done.shape, *shape), value, dtype)

    return EpisodeLog(
        countdown=full(FRESH),
        answered_by=full(source),
        granted_rows=full(NO_ROW),
        episode_return=full(0.0, jnp.float32),
        episode_length=full(0),
        since_termination=full(NEVER),
        trainer_steps=full(0),
        finished_return=full(0.0, jnp.float32),
        finished_length=full(0),
        last_pos=full(0.0, jnp.float32, num_links, 3),
        last_rot=full(0.0, jnp.float32, num_links, 4),
        seen=motion.place,
        first=jnp.copy(motion.place),  # a copy: a loop may donate each buffer only once
        was_reset=full(0),
        spare=full(0.0, jnp.float32, len(NEIGHBOURS), NUMBERS + 7 * num_links),
        nonfinite=full(0),
    )


def asked_of(log: EpisodeLog, source: int) -> EpisodeLog:
    """Returns the record, with a countdown that other callbacks set replaced by `FRESH`: states
    outlive their viewer, and the countdown of a closed viewer says never to ask again."""
    own = log.answered_by == source
    return log._replace(
        countdown=jnp.where(own, log.countdown, FRESH),
        answered_by=jnp.full_like(log.answered_by, source),
    )


def evidence_of(
    log: EpisodeLog,
    before: Motion,
    after: Motion,
    coordinates: Coordinates,
    counter_fell: jax.Array,
    ended: jax.Array,
    dt: float,
    *,
    told: bool,
) -> Evidence:
    """Looks for resets that no flag reports.

    Args:
        log: as the last step left it.
        before: at the beginning of the step.
        after: at its end.
        coordinates: of the model.
        counter_fell: bool [*batch], from `counter_fell`.
        ended: bool [*batch]: whether the environment says that its episode has ended.
        dt: s, of the step.
        told: whether a known wrapper resets the environments: then a reset by something else needs
            more evidence, and a jump alone does not make an episode doubtful.
    """

    def differ(one: jax.Array, other: jax.Array, by: float = TOUCH) -> jax.Array:
        return jnp.abs(coordinates.apart(one, other)) > by * (1 + jnp.abs(one))

    way = coordinates.apart(before.place, after.place)
    rest = jnp.abs(way - dt * (before.speed + after.speed) / 2)
    explained = dt * (jnp.abs(before.speed) + jnp.abs(after.speed)) / 2
    touch = TOUCH * (1 + jnp.abs(before.place))
    moved, most_explained, touched, odd, away, back, elsewhere, from_first, to_first = _totals(
        rest,
        explained,
        rest > touch,
        rest > ODD * explained + touch,
        jnp.abs(coordinates.apart(log.first, before.place)),
        jnp.abs(coordinates.apart(log.first, after.place)),
        differ(log.seen, before.place),
        differ(log.first, before.place, SAME),
        differ(log.first, after.place, SAME),
    )

    def most(count: jax.Array) -> jax.Array:
        return (2 * count >= way.shape[-1]) & (count > 0)

    # A wrapper that moves a few coordinates, such as those of a target, begins no episode.
    replaced = most(elsewhere) | ((elsewhere > 0) & (from_first == 0))
    moved_oddly = (moved > LITTLE_ODD * most_explained) & (touched > 0)
    jumped = (moved > ODD * most_explained) & most(odd)
    # A wrapper that stores a first state and restores it restores exactly the same coordinates.
    was_reset = moved_oddly & (counter_fell | ((to_first == 0) & (from_first > 0)))
    was_reset |= jumped & (back < away / 2 if told else back < away)
    put = jumped & (moved > VERY_ODD * most_explained) & (not told)
    was_reset |= put & ended
    if before.time is not None and after.time is not None:
        was_reset |= after.time < before.time
    return Evidence(replaced, was_reset, put & ~was_reset)


def _totals(*parts: jax.Array) -> list[jax.Array]:
    """Returns the sum of each array [*batch, C] over C, float32 [*batch], in one reduction: for few
    environments, XLA's time depends on the number of operations, not on their size."""
    zeros, last = [np.float32(0)] * len(parts), parts[0].ndim - 1
    # JAX cannot differentiate a reduction of several arrays, and no derivative is needed.
    floats = [jax.lax.stop_gradient(x.astype(jnp.float32)) for x in parts]

    def add(one: list[jax.Array], other: list[jax.Array]) -> list[jax.Array]:
        return [a + b for a, b in zip(one, other, strict=True)]

    return jax.lax.reduce(floats, zeros, add, [last])


def counter_fell(
    log: EpisodeLog, before: Mapping[str, jax.Array], after: Mapping[str, jax.Array]
) -> jax.Array:
    """Returns bool [*batch]: whether any count of an episode's steps has restarted.

    This alone proves no reset: some environments count the steps until they change a command.

    Args:
        log: as the last step left it.
        before: numbers [*batch] by path at the beginning of the step, from `states.numbers_of`.
        after: the same at its end.
    """
    fell = jnp.zeros(log.countdown.shape, bool)
    steps = jnp.where(log.was_reset > 0, 0, log.episode_length)
    for path in before.keys() & after.keys():
        one, other = before[path], after[path]
        if path.rsplit("/", 1)[-1] in COUNTERS:
            fell |= other < one
        elif jnp.issubdtype(one.dtype, jnp.integer):
            # Under any name: its value is the number of steps of this episode so far.
            counted = (steps > 1) & ((one == steps) | (one == steps + 1))
            fell |= counted & (other <= 1)
    return fell


def advance(
    log: EpisodeLog,
    evidence: Evidence,
    reward: jax.Array,
    done: tuple[jax.Array, jax.Array],
    terminated: jax.Array,
    trainer_steps: jax.Array | None,
    pose: tuple[jax.Array, jax.Array],
    pose_before: tuple[jax.Array, jax.Array] | None,
    *,
    resets_inside: bool,
) -> EpisodeLog:
    """Returns the record after one more step; all arrays [*batch].

    If the whole state is replaced, the record is lost with it: see `replaced.over_batch`.

    Args:
        log: as the last step left it. The fields that the host has set are returned unchanged.
        evidence: from `evidence_of`.
        reward: of this step.
        done: of the state before the step, and of the state after it.
        terminated: whether the environment has ended its episode with this step.
        trainer_steps: `info["steps"]` of the state before the step, if Brax's EpisodeWrapper
            keeps it; else None.
        pose: [*batch, L, 3] in m and [*batch, L, 4] wxyz, after the step.
        pose_before: the same before the step, or None if it is not needed. If an environment was
            reset within the step, `pose` is that after the reset, and this is the last one known.
        resets_inside: whether an auto-reset wrapper is inside this one.
    """
    # APG differentiates through steps; the record must not contribute to the gradient.
    reward = jax.lax.stop_gradient(jnp.asarray(reward, jnp.float32))
    begins, was_reset = _begins(log, evidence, done, trainer_steps, resets_inside=resets_inside)
    counted = log.episode_length + 1
    counted = jnp.where(log.episode_length < 0, jnp.minimum(counted, -1), counted)
    total = jnp.where(begins, reward, log.episode_return + reward)
    length = jnp.where(begins, 1, counted)
    finished = log.finished_return, log.finished_length
    before = whole(log.episode_return, log.episode_length)
    finished = where(begins & (log.episode_length != 0), before, finished)
    finished = where(terminated | was_reset, whole(total, length), finished)
    finished = where(evidence.doubtful, (0.0, 0), finished)
    kept = log.trainer_steps
    hidden, kept_pose = was_reset | resets_inside, (log.last_pos, log.last_rot)
    fell = (0.0, 0.0) if pose_before is None else jax.lax.stop_gradient(pose_before)
    fell = where(hidden[..., None, None], fell, jax.lax.stop_gradient(pose))
    fell = tuple(x.astype(jnp.float32) for x in fell)
    last_pos, last_rot = where(terminated[..., None, None], fell, kept_pose)
    return log._replace(
        episode_return=jnp.where(evidence.doubtful, 0.0, total),
        episode_length=jnp.where(evidence.doubtful, UNKNOWN, length),
        since_termination=jnp.where(terminated, 0, jnp.minimum(log.since_termination + 1, NEVER)),
        trainer_steps=kept if trainer_steps is None else jnp.asarray(trainer_steps, jnp.int32),
        finished_return=finished[0],
        finished_length=finished[1],
        last_pos=last_pos,
        last_rot=last_rot,
        was_reset=(was_reset | (terminated & resets_inside)).astype(jnp.int32),
    )


def _begins(
    log: EpisodeLog,
    evidence: Evidence,
    done: tuple[jax.Array, jax.Array],
    trainer_steps: jax.Array | None,
    *,
    resets_inside: bool,
) -> tuple[jax.Array, jax.Array]:
    """Returns, bool [*batch] each, whether the step is the first of an episode, and whether it ends
    one by a reset within it; arguments as of `advance`.

    Auto-reset wrappers replace the physics and leave `info` unchanged, so the first step of an
    episode must be recognised by other changes:

    * Wrappers around this one, where trainers put them, clear `done` before the next step, and set
      the trainer's step count back to 0. A cleared `done` shows a termination. A truncation is
      decided outside of this wrapper, so it shows only in the count, and in physics that differ
      from those that the last step left. Repeats of one action change none of these, so they
      belong to one episode.
    * Wrappers inside this one leave `done` set for this one to see, or the physics shows the reset.
    """
    over = log.since_termination == 0
    if resets_inside:
        begins = done[0] > 0
    else:
        begins = (over & (done[0] == 0)) | evidence.replaced
        if trainer_steps is None:  # no wrapper around this one repeats actions
            begins |= over & (done[1] == 0)
        else:
            begins |= (trainer_steps == 0) & (log.trainer_steps > 0)
    begins |= log.was_reset > 0
    # Some environments reset in the step after the one that ended the episode: no second end.
    late = over & evidence.was_reset & ~begins
    return begins | late, evidence.was_reset & ~late


def whole(total: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the return and length of an episode, or zeros if its beginning was not seen."""
    return where(length > 0, (total, length), (0.0, 0))


def where(which: jax.Array, one: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(jnp.where(which, a, b) for a, b in zip(one, other, strict=True))
