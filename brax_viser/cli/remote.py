"""Commands to a training in another terminal: what it is doing, what its page shows, hold, resume,
and the switch."""

import base64
import json
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, parse_qs, urlencode, urlsplit, urlunsplit

import tyro
from rich.console import Console

from brax_viser.export.files import replacing
from brax_viser.host.progress import count, duration
from brax_viser.page.access import is_loopback
from brax_viser.page.announced import Note, announced
from brax_viser.page.api import HEADER, PREFIX

SECONDS = 10.0
"""s to wait for an answer."""

PICTURE_SECONDS = 180.0
"""s to wait for a picture, which MuJoCo may have to draw on a busy machine."""

MOST_PLACES = 3
"""Most places that are named where a page may still be open."""

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


def snapshot(where: Annotated[tuple[str, ...], tyro.conf.Positional]) -> int:
    """Write a picture of what the page shows: drawn by a page that is open, or else by MuJoCo.

    Args:
        where: a file such as out.png; before or after it the page's address, as for `status`.
    """
    files = [text for text in where if "://" not in text and text.lower().endswith(".png")]
    urls = [text for text in where if text not in files]
    if len(files) != 1 or len(urls) > 1:
        return _refuse("give one file whose name ends in .png, and at most one address")
    try:
        told = picture(urls[0] if urls else _newest())
        with replacing(files[0]) as file:
            file.write_bytes(base64.b64decode(told.pop("png")))
    except (OSError, ValueError) as error:
        return _refuse(str(error))
    _say({**told, "path": str(Path(files[0]).absolute())})
    return 0


def picture(url: str) -> dict[str, Any]:
    """Has a picture taken. Returns the training's state, what is seen, and "png", in base64.

    Args:
        url: of the page, with its token.

    Raises:
        ValueError: as `ask`, or the picture cannot be taken within `PICTURE_SECONDS`.
    """
    deadline, told = time.monotonic() + PICTURE_SECONDS, ask(url, "snapshot")
    while "png" not in told:
        if time.monotonic() > deadline:
            raise ValueError(f"no picture has come within {PICTURE_SECONDS:.0f} s")
        time.sleep(0.1)
        told = ask(url, "snapshot", id=told["id"])
    return told


def _tell(url: str | None, name: str, **query: object) -> int:
    try:
        _say(ask(url or _newest(), name, **query))
    except ValueError as error:
        return _refuse(str(error))
    return 0


def _newest() -> str:
    """Returns the address of this user's newest page. Raises ValueError if there is none."""
    notes = announced()
    here = [note.url for note in notes if note.is_here]
    if here:
        return here[0]
    words = "no page of yours is open on this machine: give its address, in quotes"
    elsewhere = {_place_of(note): note.since for note in reversed(notes)}  # the newest of each
    for place, since in sorted(elsewhere.items(), key=lambda one: -one[1])[:MOST_PLACES]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(since))
        words += f"\nA page of yours was opened {place} at {when}: if it still is, type this there"
    raise ValueError(words)


def _place_of(note: Note) -> str:
    if note.machine != socket.gethostname():
        return f"on {note.machine}"
    return "on this machine, but outside of this container or in another,"


def _say(told: dict[str, Any]) -> None:
    if sys.stdout.isatty():
        Console().print(in_words(told), markup=False, highlight=False, soft_wrap=True)
    else:
        print(json.dumps(told))


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
        with _opener(parts).open(request, timeout=SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise ValueError(_reason(error, place)) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"nothing that is brax_viser's answers at {place}: {error}") from error


def _opener(parts: SplitResult) -> urllib.request.OpenerDirector:
    """Returns the opener for requests to a page, without a proxy where that could read the token or
    would not reach the page. If this user has opened the page here, exactly its certificate is
    trusted.

    Raises:
        OSError: the certificate that was noted is not valid.
    """
    place = (parts.scheme, parts.netloc)
    notes = (note for note in announced() if note.is_here and urlsplit(note.url)[:2] == place)
    note = next(notes, None)
    proxies = {}
    if parts.scheme == "https" and note is None and not _is_here(parts.hostname or ""):
        proxies = {
            name: url for name, url in urllib.request.getproxies().items() if name == "https"
        }
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler(proxies)]
    if note is not None and note.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # it may name this machine otherwise
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # its authority need not be known
        context.load_verify_locations(cadata=note.certificate)
        handlers.append(urllib.request.HTTPSHandler(context=context))
    return urllib.request.build_opener(*handlers)


def _is_here(host: str) -> bool:
    """Whether a name or a number means the machine itself."""
    try:
        return is_loopback(host)
    except ValueError:  # a name
        return host == "localhost" or host.endswith(".localhost")


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
    if told["hold_seconds_left"] is not None:
        parts[0] += f", goes on by itself in {duration(told['hold_seconds_left'])}"
    elif told["hold_seconds"] is not None:
        parts.append(f"a hold may last {duration(told['hold_seconds'])}")
    if told["reward"] is not None:
        parts.append(f"reward {told['reward']:,.1f}")
    watching = f"watching costs {100 * told['cost']:.1f} %" if told["streaming"] else "switched off"
    if "path" in told:
        by = "an open page" if told["drawn_by"] == "page" else "MuJoCo"
        watching += f"\nWritten to {told['path']}, drawn by {by}"
    problems = [x for x in (told["error"], told["fault"], *told["nonfinite"]) if x]
    return "\n".join([" · ".join(parts), f"{told['url']}: {watching}", *problems])


def _refuse(message: str) -> int:
    Console(stderr=True).print(f"brax-viser: {message}", style="red", markup=False)
    return 2
