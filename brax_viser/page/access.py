"""Decides who may open the page: makes and checks its tokens, and reads certificates.

The printed address carries a token. A browser keeps it in a cookie, because viser's page opens its
websocket at its own address without what follows the "?".
"""

import contextlib
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qs, urlsplit

TOKEN = "BRAX_VISER_TOKEN"
"""Environment variable with the token of viewers that are given none, so that open pages reconnect
after a restart."""

SHORTEST = 8
"""Fewest characters of a token."""

_CHARACTERS = re.compile(r"[A-Za-z0-9_.~-]+")  # need no escape in addresses and cookies

_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

Role = Literal["steering", "looking"]


class Tls(NamedTuple):
    """Encrypts connections."""

    context: ssl.SSLContext
    certificate: str  # the server's own, in PEM, without its issuers'


@dataclass(frozen=True)
class Tokens:
    """The token of pages that steer, and that of onlookers, which see everything and change
    nothing."""

    steering: str
    looking: str

    @classmethod
    def made(cls) -> "Tokens":
        """Returns new ones."""
        return cls(secrets.token_hex(16), secrets.token_hex(16))

    @classmethod
    def of(cls, token: str) -> "Tokens":
        """Returns a chosen token, and the onlookers' token made from it, which is the same after a
        restart. Those who have the onlookers' token can only guess the other, and slowly."""
        looking = hashlib.scrypt(
            token.encode(), salt=b"brax_viser onlookers", n=2**14, r=8, p=1, dklen=16
        )
        return cls(token, looking.hex())

    def role_of(self, token: str) -> Role | None:
        """Returns what a token allows; None: nothing. Takes the same time for any wrong one."""
        given = token.encode(errors="surrogateescape")  # header bytes that are not ASCII
        steers = hmac.compare_digest(given, self.steering.encode())
        looks = hmac.compare_digest(given, self.looking.encode())
        if steers:
            return "steering"
        return "looking" if looks else None

    def role_in(self, given: Sequence[str]) -> Role | None:
        """Returns what the first valid token allows; None if none is valid."""
        for token in given:
            if (role := self.role_of(token)) is not None:
                return role
        return None


@dataclass(frozen=True)
class Access:
    """Who may open a page, from where, and how."""

    names: tuple[str, ...] = ()  # the user's names for this machine
    origins: tuple[str, ...] = ()  # further addresses of the page, such as a proxy's
    tokens: Tokens | None = None  # None: no token is needed
    tls: Tls | None = None  # None: no encryption
    chosen: bool = False  # whether the user has asked for a token of their own, or for encryption

    def following(self, last: "Access") -> "Access":
        """Returns a copy with the tokens of the viewer that is replaced, unless tokens were
        chosen."""
        keeps = not self.chosen and self.tokens is not None and last.tokens is not None
        return replace(self, tokens=last.tokens) if keeps else self


def access_of(
    host: str,
    listening: str,
    token: str | bool | None,
    tls: tuple[str | Path, str | Path] | None,
    origins: tuple[str, ...],
) -> Access:
    """Returns what a viewer's arguments ask for; `listening` is the numeric address of `host`.

    Raises:
        ValueError: a token or the files of `tls` cannot be used.
    """
    return Access(
        (host.strip("[]"),),
        origins,
        tokens_of(token, host, listening),
        tls_of(tls),
        chosen=bool(token) or tls is not None,
    )


def tokens_of(token: str | bool | None, host: str, listening: str) -> Tokens | None:
    """Returns the tokens that a viewer's argument asks for; None if no token is needed.

    Args:
        token: the argument.
        host: as the user gave it.
        listening: numeric address that is listened on.

    Raises:
        ValueError: a token is too short, or has characters that addresses escape; or it is False
            where other machines reach the page.
    """
    if token is False:
        if not is_loopback(listening):
            raise ValueError(
                f"token=False: only where no other machine reaches the page, not on host={host!r}, "
                "where everybody could hold the training: leave it out, or use host='127.0.0.1'"
            )
        return None
    name = "token"
    if token is None:
        token, name = os.environ.get(TOKEN) or None, TOKEN
    if token is None:
        return Tokens.made()
    if not isinstance(token, str) or len(token) < SHORTEST or not _CHARACTERS.fullmatch(token):
        raise ValueError(
            f"{name}={token!r}: must be None (one is made), False (none is needed, on this machine "
            f"alone), or at least {SHORTEST} letters, digits and characters of -_.~"
        )
    return Tokens.of(token)


def tls_of(files: tuple[str | Path, str | Path] | None) -> Tls | None:
    """Reads the certificate and the key that encrypt connections from their files.

    Raises:
        ValueError: they cannot be read.
    """
    if files is None:
        return None
    try:
        certificate, key = files
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        found = _CERTIFICATE.search(Path(certificate).read_text(errors="replace"))
    except (OSError, TypeError, ValueError) as error:  # an OSError may be one of ssl's
        raise ValueError(
            f"tls={files!r}: must be the files of a certificate and of its key, in PEM ({error})"
        ) from error
    return Tls(context, found[0] if found is not None else "")


def is_loopback(listening: str) -> bool:
    """Whether a numeric address is reached from this machine alone."""
    return ipaddress.ip_address(listening.partition("%")[0]).is_loopback


def tokens_in(request: Any) -> list[str]:
    """Returns the tokens that a request's address carries."""
    with contextlib.suppress(ValueError):  # the path is malformed
        return parse_qs(urlsplit(request.path).query).get("token", [])
    return []


def with_token_in_query(path: str, tokens: Tokens | None) -> str:
    """Returns a request's path; "/TOKEN/index.html" becomes "/index.html?token=TOKEN", as does
    "/absproxy/8000/TOKEN/index.html": some proxies leave their own prefix in the path.

    The page opens its websocket at its own path, so such a token reaches the server where no cookie
    does: browsers send none from a frame within another site's page, such as a notebook.
    """
    place, _, query = path.partition("?")
    names = place.split("/")
    for number, name in enumerate(names):
        if tokens is not None and tokens.role_of(name) is not None:
            rest = "/".join(names[number + 1 :])
            return f"/{rest}?token={name}" + (f"&{query}" if query else "")
    return path


def cookies_in(request: Any) -> list[str]:
    """Returns the tokens that a request's cookies carry. Another page on the same host, at another
    path, may have left one too."""
    name, found = cookie_name(request), []
    for header in request.headers.get_all("Cookie"):
        for part in header.split(";"):
            key, _, value = part.strip().partition("=")
            if key == name:
                found.append(value)
    return found


def cookie_of(token: str, request: Any, *, secure: bool) -> str:
    """Returns the header that has a browser keep a token until it is closed. Without a path, it is
    sent to the address of this page and below: a proxy's prefix is not known here."""
    only = "; Secure" if secure else ""
    return f"{cookie_name(request)}={token}; HttpOnly; SameSite=Strict{only}"


def cookie_name(request: Any) -> str:
    """Returns the cookie's name. Browsers send a host's cookies to all of its ports: two pages on
    one host would overwrite each other's. The port is the one that the browser sees, which ssh may
    have forwarded."""
    port = urlsplit(f"//{request.headers['Host']}").port
    return f"brax_viser_{port or 'page'}"
