"""What the wrapper keeps per environment: when to ask the host again, and how its episodes go."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from brax_viser.device.emit import swallow_batch_axes
from brax_viser.records.protocol import FRESH, NEVER, NO_ROW, UNKNOWN

COUNTERS = frozenset(
    "steps step step_count step_counter num_steps elapsed_steps episode_steps episode_step "
    "episode_length timestep time_step count counter t time".split()
)
"""Names under which an environment may count the steps of its episode, from any number on."""

NEIGHBOURS = (1, 2)
"""How many places further on each environment's record is kept once more: see `over_batch`."""

NUMBERS = 5
"""Of a record, besides a pose, that are kept once more."""

TOUCH = 1e-4
"""Coordinates that differ by less, in rad or m and relative to how large they are, are the same:
XLA may round what it works out twice in two ways."""

SAME = 1e-6
"""The same where nothing was worked out in between."""

LITTLE_ODD, ODD, VERY_ODD = 1.2, 2.0, 4.0
"""How many times further than its velocity takes it a robot must have come in a step to have been
put there: a velocity that only grows or only falls within a step accounts for once. The first is
enough where there is another sign of a reset; beyond the last it has been put somewhere else even
where no reset is known to put it."""


class EpisodeLog(NamedTuple):
    """One record per environment, under one key of `state.info`.

    Kept on the device because only there is every step of every environment seen: the host asks
    for some of them at some steps, and still gets returns that are whole.
    """

    countdown: jax.Array  # int32 [*batch]: steps to let pass before the host is asked, or FRESH
    answered_by: jax.Array  # int32 [*batch]: stamp of the `source.Callbacks` that set the countdown
    granted_rows: jax.Array  # int32 [*batch], or NO_ROW: see `emit.emit`
    episode_return: jax.Array  # float32 [*batch]: rewards of the episode so far, summed
    # int32 [*batch]: env steps of the episode so far. Below 0 it is not known when the episode
    # began: `protocol.UNKNOWN` and counting, and the return is only that since then.
    episode_length: jax.Array
    since_termination: jax.Array  # int32 [*batch]: env steps; 0 with the step that terminates
    trainer_steps: jax.Array  # int32 [*batch]: the trainer's own step count, as last seen
    finished_return: jax.Array  # float32 [*batch]: of the last finished episode; else 0
    finished_length: jax.Array  # int32 [*batch]: env steps of it; 0: none known
    last_pos: jax.Array  # float32 [*batch, L, 3]: m, at the last termination, else 0
    last_rot: jax.Array  # float32 [*batch, L, 4]: wxyz, likewise
    seen: jax.Array  # float32 [*batch, C]: coordinates after the last step, see `Motion`
    first: jax.Array  # float32 [*batch, C]: coordinates after the reset
    was_reset: jax.Array  # int32 [*batch]: 1: the last step has ended in a reset within the env
    # float32 [*batch, N, NUMBERS + 7 L]: of the environments `NEIGHBOURS` places before.
    spare: jax.Array
    nonfinite: jax.Array  # int32 [*batch]: what is known not to be finite; see `protocol.REWARD`


class Motion(NamedTuple):
    """Where environments are and how they move: C hinges, slides, and positions of free bodies.
    Turns of balls and free bodies have no such coordinates, and move with the rest."""

    place: jax.Array  # float32 [*batch, C], rad or m
    speed: jax.Array  # float32 [*batch, C], rad/s or m/s
    time: jax.Array | None  # float [*batch], s, of the physics, where it keeps that


class Coordinates:
    """Which of a model's qpos and qvel make a `Motion`."""

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
        self.turns = tuple(turns)  # of each, whether it is an angle
        self._place, self._speed = _stretches(place), _stretches(speed)
        self._nq = model.nq

    def motion(self, qpos: jax.Array, qvel: jax.Array, time: jax.Array | None) -> Motion:
        """Of arrays [*batch, nq] and [*batch, nv]; of another model's nothing is known."""
        known = qpos.shape[-1:] == (self._nq,)
        place, speed = (self._place, self._speed) if known else ((), ())
        return Motion(_taken(qpos, place), _taken(qvel, speed), time)

    def apart(self, one: jax.Array, other: jax.Array) -> jax.Array:
        """float32 [*batch, C]: from one to the other, angles by the shorter way: some backends
        keep them within half a turn."""
        way, turn = other - one, 2 * math.pi
        count = way.shape[-1]
        turned = way - turn * jnp.round(way / turn)
        return jnp.where(jnp.asarray(self.turns[:count], bool), turned, way)


def _stretches(index: list[int]) -> list[slice]:
    """An index as slices, for XLA works through a gather by itself."""
    starts = [i for i in range(len(index)) if not i or index[i] != index[i - 1] + 1]
    ends = [*starts[1:], len(index)]
    return [slice(index[i], index[j - 1] + 1) for i, j in zip(starts, ends, strict=True)]


def _taken(x: jax.Array, stretches: Sequence[slice]) -> jax.Array:
    parts = [x[..., :0], *(x[..., stretch] for stretch in stretches)]
    taken = jnp.concatenate(parts[len(parts) > 1 :], axis=-1)
    return jax.lax.stop_gradient(taken).astype(jnp.float32)


class Evidence(NamedTuple):
    """What the physics tells of where episodes begin, bool [*batch] each."""

    replaced: jax.Array  # between the last step and this one somebody has replaced the physics
    was_reset: jax.Array  # within this step the environment was put where a reset puts it
    doubtful: jax.Array  # within this step it was put somewhere, and that need not be a reset


def first_log(done: jax.Array, source: int, motion: Motion, num_links: int) -> EpisodeLog:
    """The record of environments that were reset just now.

    Args:
        done: gives their batch shape.
        source: stamp of the `source.Callbacks` that will be asked.
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
        first=jnp.copy(motion.place),  # a loop may donate each buffer but once
        was_reset=full(0),
        spare=full(0.0, jnp.float32, len(NEIGHBOURS), NUMBERS + 7 * num_links),
        nonfinite=full(0),
    )


def asked_of(log: EpisodeLog, source: int) -> EpisodeLog:
    """The record, with the countdown of another feed forgotten: states outlive the viewer that
    watched them, and a closed viewer's countdown says that nobody will ever ask."""
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
    """Looks for resets that nobody tells of.

    Args:
        log: as the last step left it.
        before: as the step began.
        after: as it has ended.
        coordinates: of the model.
        counter_fell: bool [*batch], from `counter_fell`.
        ended: bool [*batch]: whether the environment says that its episode has ended.
        dt: s, of the step.
        told: whether a wrapper that is known resets the environments: then it takes more to say
            that something else does, and it is not doubted that they go on in between.
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

    # A wrapper that moves a thing or two, as a target, begins no episode.
    replaced = most(elsewhere) | ((elsewhere > 0) & (from_first == 0))
    moved_oddly = (moved > LITTLE_ODD * most_explained) & (touched > 0)
    jumped = (moved > ODD * most_explained) & most(odd)
    # A wrapper that keeps a first state to go back to goes back to the very same.
    was_reset = moved_oddly & (counter_fell | ((to_first == 0) & (from_first > 0)))
    was_reset |= jumped & (back < away / 2 if told else back < away)
    put = jumped & (moved > VERY_ODD * most_explained) & (not told)
    was_reset |= put & ended
    if before.time is not None and after.time is not None:
        was_reset |= after.time < before.time
    return Evidence(replaced, was_reset, put & ~was_reset)


def _totals(*parts: jax.Array) -> list[jax.Array]:
    """float32 [*batch]: the sum of each of some arrays [*batch, C] over its coordinates; together,
    for what XLA works out for a few environments takes as long as there are pieces of it."""
    zeros, last = [np.float32(0)] * len(parts), parts[0].ndim - 1
    # Of several arrays at once JAX has no derivative, and none is wanted.
    floats = [jax.lax.stop_gradient(x.astype(jnp.float32)) for x in parts]

    def add(one: list[jax.Array], other: list[jax.Array]) -> list[jax.Array]:
        return [a + b for a, b in zip(one, other, strict=True)]

    return jax.lax.reduce(floats, zeros, add, [last])


def counter_fell(
    log: EpisodeLog, before: Mapping[str, jax.Array], after: Mapping[str, jax.Array]
) -> jax.Array:
    """bool [*batch]: whether any count of an episode's steps has begun anew.

    Alone it tells little: some environments count to where they change a command.

    Args:
        log: as the last step left it.
        before: numbers [*batch] by their paths, as the step began, from `states.numbers_of`.
        after: the same as it has ended.
    """
    fell = jnp.zeros(log.countdown.shape, bool)
    steps = jnp.where(log.was_reset > 0, 0, log.episode_length)
    for path in before.keys() & after.keys():
        one, other = before[path], after[path]
        if path.rsplit("/", 1)[-1] in COUNTERS:
            fell |= other < one
        elif jnp.issubdtype(one.dtype, jnp.integer):
            # Whatever it is called, it has counted the steps of this episode so far.
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
    """The record after one more step; all arrays [*batch].

    Auto-reset wrappers replace the physics and leave `info` as it is, so whether the step is the
    first of an episode must be told from what they do to the rest:

    * Around this wrapper, where trainers put them, they clear `done` before the next step, and
      set the trainer's count of steps back to 0. The first tells of a termination. A truncation
      is decided outside of here, so it shows in the count alone, and in physics that is not what
      the last step has left. Repeats of one action run within such a step, with none of these
      touched, and so belong to one episode.
    * Inside of this wrapper they leave `done` to be seen by us, or the physics shows what they do.

    Where the whole state is replaced, so is the log: see `over_batch`.

    Args:
        log: as the last step left it. What the host has said is passed on as it is.
        evidence: from `evidence_of`.
        reward: of this step.
        done: of the state that the step starts from, and of that which it has come to.
        terminated: whether the environment has ended its episode with this step.
        trainer_steps: `info["steps"]` of the state that the step starts from, where Brax's
            EpisodeWrapper keeps it.
        pose: [*batch, L, 3] in m and [*batch, L, 4] wxyz, after the step.
        pose_before: the same before it, None where it is not to be looked for there. Who has been
            reset within the step is seen after that: what is known of its end is before.
        resets_inside: whether an auto-reset wrapper is inside of this one.
    """
    # APG differentiates through steps; what is only looked at must not take part in that.
    reward = jax.lax.stop_gradient(jnp.asarray(reward, jnp.float32))
    over = log.since_termination == 0
    if resets_inside:
        begins = done[0] > 0
    else:
        begins = (over & (done[0] == 0)) | evidence.replaced
        if trainer_steps is None:  # nothing around that would repeat an action
            begins |= over & (done[1] == 0)
        else:
            begins |= (trainer_steps == 0) & (log.trainer_steps > 0)
    begins |= log.was_reset > 0
    # Some reset with the step after the one that has ended the episode: that is no end of another.
    late = over & evidence.was_reset & ~begins
    begins |= late
    was_reset = evidence.was_reset & ~late

    counted = log.episode_length + 1
    counted = jnp.where(log.episode_length < 0, jnp.minimum(counted, -1), counted)
    total = jnp.where(begins, reward, log.episode_return + reward)
    length = jnp.where(begins, 1, counted)
    finished = log.finished_return, log.finished_length
    before = _whole(log.episode_return, log.episode_length)
    finished = _where(begins & (log.episode_length != 0), before, finished)
    finished = _where(terminated | was_reset, _whole(total, length), finished)
    finished = _where(evidence.doubtful, (0.0, 0), finished)
    kept = log.trainer_steps
    hidden, kept_pose = was_reset | resets_inside, (log.last_pos, log.last_rot)
    fell = (0.0, 0.0) if pose_before is None else jax.lax.stop_gradient(pose_before)
    fell = _where(hidden[..., None, None], fell, jax.lax.stop_gradient(pose))
    fell = tuple(x.astype(jnp.float32) for x in fell)
    last_pos, last_rot = _where(terminated[..., None, None], fell, kept_pose)
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


def _whole(total: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return and length of an episode, where it was seen from its beginning on."""
    return _where(length > 0, (total, length), (0.0, 0))


def _where(which: jax.Array, one: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(jnp.where(which, a, b) for a, b in zip(one, other, strict=True))


def over_batch(log: EpisodeLog) -> EpisodeLog:
    """Restores what has been lost of the records of environments whose whole state was replaced.

    Some loops replace all of a state by that of a reset where an episode has ended, `info` and
    this record with it. In a batch of which only some have a fresh one, that is what has happened
    to those. So each record keeps what counts of those of some neighbours. Where all of them were
    replaced too, the environment is taken to have fallen, and its return and pose are not known.

    Args:
        log: from `advance`, [*batch], seen as a whole batch whatever `vmap`s are around.
    """
    fields = [getattr(log, name) for name in _RESTORED]
    operands = jax.lax.stop_gradient((log.countdown, log.spare, *fields))
    shard = jnp.zeros((), jnp.int32)  # of no interest
    spare, *restored = jax.lax.stop_gradient(swallow_batch_axes(_restored)(shard, *operands))
    return log._replace(spare=spare, **dict(zip(_RESTORED, restored, strict=True)))


_RESTORED = (
    "episode_return",
    "episode_length",
    "since_termination",
    "finished_return",
    "finished_length",
    "last_pos",
    "last_rot",
)


def _restored(
    shard: jax.Array, countdown: jax.Array, spare: jax.Array, *fields: jax.Array
) -> tuple[jax.Array, ...]:
    """(spare, *fields), as `over_batch` leaves them; all [*batch, ...]."""
    batch, num_envs = countdown.shape, math.prod(countdown.shape)
    if num_envs == 1:
        return spare, *fields
    shapes = [x.shape for x in (spare, *fields)]
    countdown, spare, *flat = (
        x.reshape(num_envs, *x.shape[len(batch) :]) for x in (countdown, spare, *fields)
    )
    offsets = [offset for offset in NEIGHBOURS if offset < num_envs]
    fresh = countdown == FRESH
    replaced = fresh & ~fresh.all()

    def restore(fields: list[jax.Array]) -> list[jax.Array]:
        total, length, since, *ended, pos, rot = fields
        found, kept = jnp.zeros(num_envs, bool), jnp.zeros(spare.shape[::2])
        for number, offset in enumerate(offsets):
            there = ~jnp.roll(replaced, -offset) & ~found
            kept = jnp.where(there[:, None], jnp.roll(spare[:, number], -offset, axis=0), kept)
            found |= there
        ages = kept[:, 2]
        fell = ~found | (ages == 0)
        # Who has not fallen was taken out of an episode by whoever has replaced its state.
        last = _whole(kept[:, 0], kept[:, 1].astype(jnp.int32))
        before = kept[:, 3], kept[:, 4].astype(jnp.int32)
        last = _where(fell, before, last)
        age = jnp.where(fell, 1, jnp.minimum(ages.astype(jnp.int32) + 1, NEVER))
        again = since == 0  # in its first step
        pose_then = kept[:, NUMBERS:].reshape(num_envs, -1, 7)
        pose_then = pose_then[..., :3], pose_then[..., 3:]
        own = ~replaced | (ended[1] > 0)
        return [
            total,
            length,
            jnp.where(replaced & ~again, age, since),
            *_where(own, tuple(ended), last),
            *_where((replaced & ~again)[:, None, None], pose_then, (pos, rot)),
        ]

    flat = jax.lax.cond(replaced.any(), restore, lambda fields: fields, flat)
    numbers = [x[:, None].astype(jnp.float32) for x in flat[:NUMBERS]]
    pose = jnp.concatenate(flat[NUMBERS:], axis=2)
    record = jnp.concatenate([*numbers, pose.reshape(num_envs, -1)], axis=1)
    copies = [jnp.roll(record, offset, axis=0) for offset in NEIGHBOURS]
    spare = jnp.stack(copies, axis=1)
    return tuple(x.reshape(shape) for x, shape in zip((spare, *flat), shapes, strict=True))
