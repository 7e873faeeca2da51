"""Commands to a training in another terminal: what it is doing, hold, resume, and the switch."""

import json
import sys
import urllib.error
import urllib.request
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import tyro
from rich.console import Console

from brax_viser.host.progress import count, duration
from brax_viser.page.announced import announced
from brax_viser.page.api import HEADER, PREFIX

SECONDS = 10.0
"""s to wait for an answer."""

Url = Annotated[str | None, tyro.conf.Positional]


def status(url: Url = None) -> int:
    """Say what a training is doing; in JSON where the output goes to a program.

    Args:
        url: address of its page, with the token; the newest page of this user if not given.
    """
    return _tell(url, "status")


def hold(url: Url = None) -> int:
    """Hold a training at its next step.

    Args:
        url: as for `status`.
    """
    return _tell(url, "hold")


def resume(url: Url = None) -> int:
    """Let a held training go on.

    Args:
        url: as for `status`.
    """
    return _tell(url, "resume")


def switch(on: Annotated[str, tyro.conf.Positional], url: Url = None) -> int:
    """Switch the view on or off: while it is off, the training runs at full speed.

    Args:
        on: on or off.
        url: as for `status`.
    """
    if on not in ("on", "off"):
        return _refuse(f"{on!r}: must be on or off")
    return _tell(url, "switch", on=int(on == "on"))


def _tell(url: str | None, name: str, **query: object) -> int:
    known = announced()
    if url is None and not known:
        return _refuse("no page of yours is open on this machine: give its address, in quotes")
    try:
        told = ask(url or known[0], name, **query)
    except ValueError as error:
        return _refuse(str(error))
    if sys.stdout.isatty():
        Console().print(in_words(told), markup=False, highlight=False)
    else:
        print(json.dumps(told))
    return 0


def ask(url: str, name: str, **query: object) -> dict[str, Any]:
    """Sends a command to a page. Returns the training's state, as `page.api.Api.status` has it.

    Args:
        url: of the page, with its token.
        name: of the command.
        query: its arguments.

    Raises:
        ValueError: nothing answers there, or the command is refused. The message says why.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    token = parse_qs(parts.query).get("token", [])
    arguments = {**query, **({"token": token[0]} if token else {})}
    path = f"{parts.path.rstrip('/')}{PREFIX}{name}"
    address = urlunsplit((parts.scheme, parts.netloc, path, urlencode(arguments), ""))
    place = f"{parts.scheme}://{parts.netloc}"
    try:
        request = urllib.request.Request(address, headers={HEADER: "1"})
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise ValueError(_reason(error, place)) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"nothing that is brax_viser's answers at {place}: {error}") from error


def _reason(error: urllib.error.HTTPError, place: str) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError):
        if error.code == 403:
            return f"{place} asks for the token: give the whole address that was printed, in quotes"
        return f"{place} answers {error.code}"


def in_words(told: dict[str, Any]) -> str:
    """Describes a training in two lines."""
    state = "held" if told["held"] else told["phase"]
    goal = f" of {count(told['num_timesteps'])}" if told["num_timesteps"] else ""
    parts = [
        f"{told['env'] or 'no environment yet'}: {state}",
        f"{count(told['num_steps'])}{goal} steps",
        f"for {duration(told['elapsed_seconds'])}",
    ]
    if told["reward"] is not None:
        parts.append(f"reward {told['reward']:,.1f}")
    watching = f"watching costs {100 * told['cost']:.1f} %" if told["streaming"] else "switched off"
    problems = [x for x in (told["error"], told["fault"], *told["nonfinite"]) if x]
    return "\n".join([" · ".join(parts), f"{told['url']}: {watching}", *problems])


def _refuse(message: str) -> int:
    Console(stderr=True).print(f"brax-viser: {message}", style="red", markup=False)
    return 2
