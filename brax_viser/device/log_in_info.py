"""Puts the record of an environment's episodes into the `info` of its state, and takes it out."""

from collections.abc import Mapping
from typing import Any

from brax_viser.device.episode import EpisodeLog
from brax_viser.device.states import mapping_like, replaced

INFO_KEY = "brax_viser"
"""The wrapper's only key in `state.info`. Its value is an `episode.EpisodeLog` as a dictionary of
its fields, which code that converts `info` to another type can carry."""

PRESERVED_KEY = "AutoResetWrapper_preserve_info"
"""The key of `state.info` that Playground's BraxAutoResetWrapper keeps when it replaces all others:
in Playground's states our record is kept in its dictionary, unless its value is of another type."""


def has_log(info: Any) -> bool:
    """Whether `info` contains the record, in either of its places."""
    if not isinstance(info, Mapping):
        return False
    preserved = info.get(PRESERVED_KEY)
    return INFO_KEY in info or (isinstance(preserved, Mapping) and INFO_KEY in preserved)


def with_log(state: Any, log: EpisodeLog) -> Any:
    """Returns the state with the record in its `info`."""
    info, record = state.info, log._asdict()
    preserved, added = info.get(PRESERVED_KEY, {}), {INFO_KEY: record}
    # Only Playground's wrappers replace the whole `info` at the end of an episode.
    if hasattr(state, "data") and isinstance(preserved, Mapping):
        added = {PRESERVED_KEY: mapping_like(preserved, {**preserved, **added})}
    return replaced(state, info=mapping_like(info, {**info, **added}))


def without_log(given: Mapping[str, Any]) -> tuple[Any, EpisodeLog]:
    """Returns an `info` without the record, and the record; ValueError if there is none."""
    if not has_log(given):
        raise ValueError(
            f"state.info has no {INFO_KEY!r}: the state must come from this VisualizedEnv's "
            "reset or step, not from the env inside"
        )
    info = dict(given)
    if INFO_KEY in info:
        record = info.pop(INFO_KEY)
    else:
        preserved = dict(info[PRESERVED_KEY])
        record = preserved.pop(INFO_KEY)
        if preserved:
            info[PRESERVED_KEY] = mapping_like(given[PRESERVED_KEY], preserved)
        else:  # nothing else was in it
            del info[PRESERVED_KEY]
    return mapping_like(given, info), EpisodeLog(**record)
