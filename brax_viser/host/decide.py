"""Decides what a device does with a step: pure functions of all that this depends on.

Pacer.ask -> Answer     whether the step belongs to a stretch, and when the next one may
wish      -> Wish       whether anything wants it
decide    -> Decision   what of it to push
"""

from collections.abc import Set
from typing import NamedTuple

from brax_viser.host.control import Control
from brax_viser.host.pacing import Answer
from brax_viser.records.decision import Decision, RowRequest
from brax_viser.records.protocol import (
    FOREVER,
    GIVEN,
    PUSH,
    PUSH_COORDINATES,
    PUSH_MODEL,
    Origin,
)


class Wish(NamedTuple):
    """Whether a step is wanted, and the steps to let pass after it."""

    page: bool  # to be shown
    recorded: bool
    skip: int


def wish(control: Control, role: str, paced: Answer, shown: bool, stepped: bool) -> Wish:
    """Decides whether a step of a rollout is wanted.

    Args:
        control: the page's settings.
        role: of the rollout.
        paced: the pacer's answer.
        shown: whether this is the environment that the page shows for the role.
        stepped: whether the training is held, and advanced by steps of this rollout.
    """
    if control.closed:
        return Wish(False, False, FOREVER)
    recorded = shown and control.records(role)
    if stepped:  # each step, whether or not a page is open
        return Wish(shown and control.streaming, recorded, 0)
    return Wish(paced.push, recorded, 0 if recorded else paced.skip)


class Drawn(NamedTuple):
    """What is drawn of one device's environments."""

    rule: int = GIVEN  # by which the device must rank them first
    request: RowRequest | None = None  # None: they are not chosen yet
    models: Set[int] = frozenset()  # environments whose models are known
    coordinates: bool = False  # whether twins or a recording need them
    detail_env: int | None = None  # the environment, over all devices, whose details are wanted


def decide(origin: Origin, skip: int, drawn: Drawn) -> Decision:
    """Decides what to push of a step that is wanted, and after which `skip` steps pass.

    Args:
        origin: the origin of the device's call.
        skip: steps to let pass.
        drawn: what is drawn.
    """
    rule, request, models, coordinates, env = drawn
    if rule != GIVEN:
        return Decision(skip, PUSH, rule)
    if request is None:
        return Decision(skip)
    if not request.envs:
        push = 0
    elif origin.model and not request.envs <= models:
        push = PUSH_MODEL
    else:
        push = PUSH_COORDINATES if coordinates and origin.coordinates else PUSH
    wanted = origin.detail and env in request.envs
    return Decision(skip, push, GIVEN, request, env if wanted else None)
