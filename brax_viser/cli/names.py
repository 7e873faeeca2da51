"""Knows the environments that the command line can train, by name."""

import difflib

from brax_viser.cli import playground
from brax_viser.compat import brax_environments

MOST_SUGGESTIONS = 3


def known_environments() -> dict[str, str]:
    """Returns the names of all environments that are installed, with where each comes from."""
    known = dict.fromkeys(sorted(brax_environments()), "Brax")
    registry = playground.registry()
    if registry is not None:
        suites = (
            ("Playground, DeepMind Control Suite", registry.dm_control_suite),
            ("Playground, locomotion", registry.locomotion),
            ("Playground, manipulation", registry.manipulation),
        )
        for suite, module in suites:
            known |= {name: suite for name in module.ALL_ENVS if name not in known}
    return known


def matching(word: str) -> dict[str, str]:
    """Returns the environments whose names contain a word, whatever its case."""
    return {
        name: where for name, where in known_environments().items() if word.lower() in name.lower()
    }


def unknown(name: str) -> str:
    """Returns the message for a name that no environment has."""
    known = {known.lower(): known for known in known_environments()}
    alike = difflib.get_close_matches(name.lower(), known, MOST_SUGGESTIONS)
    alike += [low for low in known if name.lower() in low and low not in alike]
    meant = [known[low] for low in alike[:MOST_SUGGESTIONS]]
    asks = f" Did you mean {' or '.join(meant)}?" if meant else ""
    more = "" if playground.registry() else f" For Playground's: {playground.HOW_TO_INSTALL}."
    return f"no environment {name!r}.{asks} `brax-viser envs` lists all.{more}"
