"""Access to Bespeak's own routes: for clients that know the token or, without one, for this machine only."""

from __future__ import annotations

import hmac
import ipaddress
import re
from http import HTTPStatus
from pathlib import Path

from bespeak.errors import InputError, UsageError
from bespeak.proxy.http.passing import Scope
from bespeak.proxy.http.refusal import Refusal

FORWARDED = (b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip")
"""Headers of a proxy on this machine, which passes on requests from elsewhere."""

MIN_TOKEN_CHARS = 16

HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+))(?::\d*)?", re.ASCII)


def check_binding(host: str, token: str | None) -> None:
    """Raises UsageError if other machines can reach the address without a token, or the token is easy to guess."""
    if token is None and not is_loopback(host):
        raise UsageError(
            f"{host or 'every address'} can be reached from other machines, and /_bespeak gives access to users' data: "
            "give a token, or bind to 127.0.0.1"
        )
    if token is not None and (len(token) < MIN_TOKEN_CHARS or not all("!" <= char <= "~" for char in token)):
        raise UsageError(
            f"a token needs at least {MIN_TOKEN_CHARS} characters, ASCII without spaces: "
            "make one with 'openssl rand -hex 32'"
        )


def read_token(path: Path) -> str:
    """The token in a file, without the line end. Raises InputError."""
    try:
        return path.read_text("ascii").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"the token in {path} is not ASCII: make one with 'openssl rand -hex 32'") from error
    except OSError as error:
        raise InputError(f"cannot read the token {path} ({error.strerror}): check the path") from error


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def check_access(scope: Scope, token: str | None) -> None:
    """Raises Refusal for a client that does not know the token or, if there is none, is not on this machine."""
    if token is None:
        check_local(scope)
        return
    given = header_values(scope, b"x-bespeak-token")
    for value in header_values(scope, b"authorization"):
        scheme, _, rest = value.partition(b" ")
        if scheme.lower() == b"bearer":
            given.append(rest.strip())
    if not any(hmac.compare_digest(value, token.encode()) for value in given):
        raise Refusal(
            HTTPStatus.UNAUTHORIZED,
            "a token is needed, as 'Authorization: Bearer …' or 'X-Bespeak-Token: …'",
            [(b"www-authenticate", b'Bearer realm="bespeak"')],
        )


def check_local(scope: Scope) -> None:
    """Raises Refusal for another machine, and for a page of another site in a browser on this one.

    Such a page cannot choose its `Origin`, and a site whose name resolves to this machine cannot choose `Host`.
    """
    client = scope.get("client")
    passed_on = any(header_values(scope, name) for name in FORWARDED)
    if passed_on or (client and not is_loopback(client[0])):
        raise Refusal(HTTPStatus.FORBIDDEN, "without a token only this machine is served: start Bespeak with a token")
    hosts = header_values(scope, b"host")
    if len(hosts) != 1 or not is_loopback(host_name(hosts[0])):
        raise Refusal(HTTPStatus.FORBIDDEN, "without a token only the host names localhost, 127.0.0.1 and [::1] serve")
    own = (b"http://" + hosts[0].lower(), b"https://" + hosts[0].lower())
    foreign = any(origin.lower() not in own for origin in header_values(scope, b"origin"))
    if foreign or any(site not in (b"same-origin", b"none") for site in header_values(scope, b"sec-fetch-site")):
        raise Refusal(
            HTTPStatus.FORBIDDEN, "without a token no other site's page is served: start Bespeak with a token"
        )


def host_name(host: bytes) -> str:
    """The host in a `Host` header, without its port; "" if the header is broken."""
    found = HOST.fullmatch(host.decode("latin-1"))
    return (found[1] or found[2]) if found else ""


def header_values(scope: Scope, name: bytes) -> list[bytes]:
    return [value.strip() for given, value in scope["headers"] if given.lower() == name]
