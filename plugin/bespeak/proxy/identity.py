"""Finds which user a search is for, and whether that user's searches are personalised."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bespeak.errors import InputError, UsageError
from bespeak.profiles.events import MAX_ID_CHARS, user_key
from bespeak.records import UserKey
from bespeak.statuses import Reason

if TYPE_CHECKING:
    from bespeak.proxy.http.upstream import Headers

USER, SESSION, TENANT = b"x-bespeak-user", b"x-bespeak-session", b"x-bespeak-tenant"

MIN_SECRET_BYTES = 32
"""A key for HS256 must be at least as long as its digest (RFC 7518, 3.2)."""

MIN_RSA_BITS = 2048
MAX_TOKEN_CHARS = 8192
LEEWAY_S = 30
"""How far the clocks of the signer and of this machine may differ."""

TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Identity:
    """The user of a request. `reason` says why a named user is not accepted; "" if nobody was named."""

    user: UserKey | None
    session_id: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class JwtKey:
    """The key that users' tokens are signed with. The algorithm is the key's, never one that a token names."""

    algorithm: str
    key: Any = field(repr=False)
    audience: str | None = None  # None: only tokens without an audience

    @classmethod
    def read(cls, path: Path, audience: str | None = None) -> JwtKey:
        """A public key in PEM (RS256, ES256, EdDSA), or else the file's bytes as the secret for HS256.

        The line end of a secret in text form is not part of it. Raises InputError.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the key {path} ({error.strerror}): check the path") from error
        if b"-----BEGIN" in content:
            return cls(*_public_key(content, path), audience)
        return cls("HS256", _secret(content, path), audience)

    def claims(self, token: str) -> Mapping[str, Any] | None:
        """The token's claims; None if it is not signed with this key, has expired, or is for another audience."""
        import jwt

        try:
            found: Mapping[str, Any] = jwt.decode(
                token,
                self.key,
                algorithms=[self.algorithm],
                audience=self.audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "sub"]},
            )
        except (jwt.PyJWTError, RecursionError, ValueError, OverflowError):
            return None
        return found


class Identify:
    """Finds the user that a request names. Built once.

    Header bytes are read as UTF-8, and nothing is percent-decoded. The header takes precedence over the body's
    `ext.ubi`, in which `user_id`, else `query_attributes.user_id`, else `client_id` names the user, as in an event.
    """

    def __init__(self, jwt_key: JwtKey | None = None) -> None:
        self._jwt_key = jwt_key

    def __call__(self, headers: Headers, ubi: Mapping[str, Any]) -> Identity:
        try:
            given = _given(headers)
            user_id = given.get(USER) or _from_ubi(ubi, "user_id") or _client_id(ubi)
            session_id = given.get(SESSION) or _from_ubi(ubi, "session_id")
            if not user_id:
                return Identity(None)
            if self._jwt_key is None:
                return _identity(given.get(TENANT, ""), user_id, session_id)
            return _signed(self._jwt_key, given.get(USER, ""), session_id)
        except (UnicodeDecodeError, UsageError):
            return Identity(None, reason=Reason.BAD_IDENTITY)


class Share:
    """The share of users whose searches are personalised, in [0, 1]; it may change at any time.

    Only tenant and user decide who is included, and a user who is included stays so when the share grows.
    """

    def __init__(self, value: float = 1.0) -> None:
        self.set(value)

    @classmethod
    def parse(cls, text: str) -> float:
        """Reads "10%" or "0.1". Raises UsageError, also for a bare 1, which could mean 1% or everyone."""
        found = re.fullmatch(r"(\d{1,3}(?:\.\d{0,15})?)(%?)", text.strip(), re.ASCII)
        if not found or found.groups() == ("1", ""):
            raise UsageError("write a share as 10% or 0.1, and all users as 100%")
        return _checked(float(found[1]) / (100 if found[2] else 1))

    @property
    def value(self) -> float:
        return self._value

    def set(self, value: float) -> None:
        """Raises UsageError outside [0, 1]."""
        self._value = _checked(value)

    def includes(self, user: UserKey) -> bool:
        content = f"{len(user.tenant)}:{user.tenant}{user.user_id}".encode("utf-8", "surrogatepass")
        place = hashlib.blake2b(content, digest_size=8, person=b"bespeak share").digest()
        return int.from_bytes(place) < self._value * 2**64


@dataclass(frozen=True, slots=True)
class Audience:
    """The user of a request, and whether they are personalised."""

    identify: Identify = field(default_factory=Identify)
    share: Share = field(default_factory=Share)


def names_user(headers: Headers) -> bool:
    """Whether a header names a user, or tries to."""
    return any(name.lower() == USER for name, _ in headers)


def tenant_of(headers: Headers) -> str:
    """The header's tenant, "" if there is none. Raises UsageError if it is given twice or is not UTF-8."""
    try:
        return _given(headers).get(TENANT, "")
    except UnicodeDecodeError as error:
        raise UsageError("an X-Bespeak header is not UTF-8") from error


def _checked(value: float) -> float:
    if not 0 <= value <= 1:
        raise UsageError("a share must be between 0% and 100%")
    return value


def _given(headers: Headers) -> dict[bytes, str]:
    found: dict[bytes, str] = {}
    for raw_name, value in headers:
        name = raw_name.lower()
        if name not in (USER, SESSION, TENANT):
            continue
        if name in found:
            raise UsageError(f"{name.decode()} is given twice")
        found[name] = value.strip(b" \t").decode("utf-8")
    return found


def _identity(tenant: str, user_id: str, session_id: str) -> Identity:
    """Raises UsageError for ids that no event could have."""
    if len(session_id) > MAX_ID_CHARS or any("\ud800" <= char <= "\udfff" for char in session_id):
        raise UsageError("the session is not a valid id")
    return Identity(user_key(tenant, user_id), session_id)


def _signed(jwt_key: JwtKey, token: str, session_id: str) -> Identity:
    """User and tenant, from the token alone: a header could name someone else's."""
    if not TOKEN.fullmatch(token):
        return Identity(None, reason=Reason.UNSIGNED)
    claims = jwt_key.claims(token) if len(token) <= MAX_TOKEN_CHARS else None
    if claims is None:
        return Identity(None, reason=Reason.BAD_TOKEN)
    sub, tenant, session = claims["sub"], claims.get("tenant", ""), claims.get("session", session_id)
    if not (isinstance(sub, str) and isinstance(tenant, str) and isinstance(session, str)):
        return Identity(None, reason=Reason.BAD_TOKEN)
    return _identity(tenant, sub, session)


def _from_ubi(ubi: Mapping[str, Any], name: str) -> str:
    attributes = ubi.get("query_attributes")
    return _id(ubi.get(name), name) or _id(attributes.get(name) if isinstance(attributes, Mapping) else None, name)


def _client_id(ubi: Mapping[str, Any]) -> str:
    return _id(ubi.get("client_id"), "client_id")


def _id(value: Any, name: str) -> str:
    """An id as text; it may be a whole number, as in events. Raises UsageError."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UsageError(f"ext.ubi.{name} is not text")


def _public_key(content: bytes, path: Path) -> tuple[str, Any]:
    """Algorithm and key. Raises InputError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{path} is not a public key in PEM: give the public key, as 'openssl pkey -in KEY -pubout' writes it"
        ) from error
    if isinstance(key, RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise InputError(f"the RSA key {path} has {key.key_size} bits: give one of {MIN_RSA_BITS} or more")
        return "RS256", key
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return "ES256", key
    if isinstance(key, Ed25519PublicKey):
        return "EdDSA", key
    raise InputError(f"the key {path} is of an unsupported kind: give an RSA, P-256 or Ed25519 key")


def _secret(content: bytes, path: Path) -> bytes:
    """Raises InputError for one that is too short, and for a public key in another form, which anyone may know."""
    import jwt

    line = content.rstrip(b"\r\n")
    secret = line if all(0x20 <= byte < 0x7F for byte in line) else content
    if len(secret) < MIN_SECRET_BYTES:
        raise InputError(
            f"the secret {path} has {len(secret)} bytes, but {MIN_SECRET_BYTES} are needed: "
            "make one with 'openssl rand -hex 32'"
        )
    try:
        jwt.get_algorithm_by_name("HS256").prepare_key(secret)
        is_key = secret.lstrip().startswith(b"{")
    except jwt.InvalidKeyError:
        is_key = True
    if is_key:
        raise InputError(f"{path} looks like a key in an unsupported form: give a public key in PEM")
    return secret
