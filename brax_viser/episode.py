"""What the wrapper keeps per environment: when to ask the host again, and how its episode goes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from brax_viser.protocol import FRESH, NEVER, NO_ROW


class EpisodeLog(NamedTuple):
    """One record per environment, under one key of `state.info`.

    Kept on the device because only there is every step of every environment seen: the host asks
    for some of them at some steps, and still gets returns that are whole.
    """

    countdown: jax.Array  # int32 [*batch]: steps to let pass before the host is asked, or FRESH
    answered_by: jax.Array  # int32 [*batch]: stamp of the `feed.Feed` that set the countdown
    granted_rows: jax.Array  # int32 [*batch], or NO_ROW: see `emit.emit`
    episode_return: jax.Array  # float32 [*batch]: rewards of the episode so far, summed
    episode_length: jax.Array  # int32 [*batch]: env steps of the episode so far
    since_termination: jax.Array  # int32 [*batch]: env steps; 0 with the step that terminates
    trainer_steps: jax.Array  # int32 [*batch]: the trainer's own step count, as last seen


def first_log(done: jax.Array, feed: int) -> EpisodeLog:
    """The record of environments that were reset just now.

    Args:
        done: gives their batch shape.
        feed: stamp of the `feed.Feed` that will be asked.
    """

    def full(value: float, dtype: jnp.dtype = jnp.int32) -> jax.Array:
        return jnp.full_like(done, value, dtype=dtype)

    return EpisodeLog(
        countdown=full(FRESH),
        answered_by=full(feed),
        granted_rows=full(NO_ROW),
        episode_return=full(0.0, jnp.float32),
        episode_length=full(0),
        since_termination=full(NEVER),
        trainer_steps=full(0),
    )


def asked_of(log: EpisodeLog, feed: int) -> EpisodeLog:
    """The record, with the countdown of another feed forgotten: states outlive the viewer that
    watched them, and a closed viewer's countdown says that nobody will ever ask."""
    own = log.answered_by == feed
    return log._replace(
        countdown=jnp.where(own, log.countdown, FRESH),
        answered_by=jnp.full_like(log.answered_by, feed),
    )


def episode_begins(
    log: EpisodeLog, done: jax.Array, trainer_steps: jax.Array | None, *, resets_inside: bool
) -> jax.Array:
    """Whether a step that is about to be taken is the first of an episode, bool [*batch].

    Auto-reset wrappers replace the physics and leave `info` as it is, so this must be told from
    what they do to the rest:

    * Around this wrapper, where trainers put them, they clear `done` before the next step, and
      set the trainer's count of steps back to 0. The first tells of a termination. A truncation
      is decided outside of here, so it shows in the count alone. Repeats of one action run
      within such a step, with neither touched, and so belong to one episode.
    * Inside of this wrapper they leave `done` to be seen by us.

    Where the whole state is replaced, so is the log.

    Args:
        log: as the last step left it.
        done: of the state that the step starts from.
        trainer_steps: `info["steps"]` of that state, where Brax's EpisodeWrapper keeps it.
        resets_inside: whether an auto-reset wrapper is inside of this one.
    """
    if resets_inside:
        return done > 0
    begins = (log.since_termination == 0) & (done == 0)
    if trainer_steps is not None:
        begins |= (trainer_steps == 0) & (log.trainer_steps > 0)
    return begins


def advance(
    log: EpisodeLog,
    begins: jax.Array,
    reward: jax.Array,
    terminated: jax.Array,
    trainer_steps: jax.Array | None,
) -> EpisodeLog:
    """The record after one more step; all arrays [*batch].

    Args:
        log: as the last step left it. What the host has said is passed on as it is.
        begins: from `episode_begins`.
        reward: of this step.
        terminated: whether the environment has ended its episode with this step.
        trainer_steps: as for `episode_begins`.
    """
    # APG differentiates through steps; what is only looked at must not take part in that.
    reward = jax.lax.stop_gradient(jnp.asarray(reward, jnp.float32))
    kept = log.trainer_steps
    return log._replace(
        episode_return=jnp.where(begins, reward, log.episode_return + reward),
        episode_length=jnp.where(begins, 1, log.episode_length + 1),
        since_termination=jnp.where(terminated, 0, jnp.minimum(log.since_termination + 1, NEVER)),
        trainer_steps=kept if trainer_steps is None else jnp.asarray(trainer_steps, jnp.int32),
    )
