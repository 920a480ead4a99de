import base64
import hashlib
import hmac
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from bespeak.errors import InputError, UsageError
from bespeak.proxy.identity import Identify, Identity, JwtKey, Share, tenant_of
from bespeak.records import UserKey

SECRET = b"0123456789abcdef0123456789abcdef"
EXP = 4_000_000_000


def headers(**named):
    return [(f"X-Bespeak-{name}".encode(), value if isinstance(value, bytes) else value.encode())
            for name, value in named.items()]  # fmt: skip


def pem(key):
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip


def private_pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )  # fmt: skip


@pytest.fixture(scope="module")
def keys():
    """Private keys by the algorithm that signs with them."""
    return {
        "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }


@pytest.fixture
def key_file(tmp_path):
    def write(content):
        path = tmp_path / "key"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def signed(key_file):
    return Identify(JwtKey.read(key_file(SECRET)))


def token(claims, key=SECRET, algorithm="HS256", **header):
    return jwt.encode({"sub": "ada", "exp": EXP} | claims, key, algorithm=algorithm, headers=header or None)


def test_headers_name_user_session_and_tenant():
    found = Identify()(headers(User="ada", Session="s1", Tenant="shop"), {})
    assert found == Identity(UserKey("shop", "ada"), "s1")


def test_a_request_may_name_nobody():
    assert Identify()([(b"host", b"x")], {}) == Identity(None)
    assert Identify()(headers(User=" ", Session="s"), {"client_id": None, "user_query": "cake"}) == Identity(None)


def test_the_body_names_the_user_as_an_event_does():
    ask = Identify()
    assert ask([], {"client_id": "c"}).user == UserKey("", "c")
    assert ask([], {"client_id": 7}).user == UserKey("", "7")
    assert ask([], {"client_id": "c", "query_attributes": {"user_id": "u", "session_id": "s"}}) == Identity(
        UserKey("", "u"), "s"
    )
    assert ask([], {"client_id": "c", "user_id": "u"}).user == UserKey("", "u")
    assert ask(headers(Tenant="shop", Session="h"), {"client_id": "c", "session_id": "s"}) == Identity(
        UserKey("shop", "c"), "h"
    )


def test_the_header_takes_precedence_over_the_body():
    assert Identify()(headers(User="ada"), {"client_id": "c"}).user == UserKey("", "ada")


def test_ids_are_utf_8_and_nothing_is_decoded_further():
    assert Identify()(headers(User="Žofie 🙂"), {}).user == UserKey("", "Žofie 🙂")
    assert Identify()(headers(User="a%20b"), {}).user == UserKey("", "a%20b")


@pytest.mark.parametrize(
    ("given", "ubi"),
    [
        (headers(User=b"\xe9t\xe9"), {}),
        (headers(User="ada", Tenant=b"\xff"), {}),
        (headers(User="a" * 257), {}),
        (headers(User="ada", Tenant="t" * 257), {}),
        (headers(User="ada", Session="s" * 257), {}),
        ([*headers(User="ada"), *headers(User="bob")], {}),
        ([*headers(User="ada"), (b"x-bespeak-user", b"ada")], {}),
        ([], {"client_id": ["ada"]}),
        ([], {"client_id": True}),
        ([], {"client_id": "half \ud83d"}),
        ([], {"client_id": "ada", "session_id": "half \ud83d"}),
    ],
)
def test_an_invalid_id_names_nobody(given, ubi):
    assert Identify()(given, ubi) == Identity(None, reason="bad_identity")


def test_a_signed_user(signed):
    assert signed(headers(User=token({})), {}) == Identity(UserKey("", "ada"))
    assert signed(headers(User=token({"tenant": "shop", "session": "s"})), {}) == Identity(UserKey("shop", "ada"), "s")


def test_the_tenant_of_a_signed_user_is_the_tokens_alone(signed):
    other = headers(User=token({"tenant": "shop"}), Tenant="bank", Session="h")
    assert signed(other, {}) == Identity(UserKey("shop", "ada"), "h")
    assert signed(headers(User=token({}), Tenant="bank"), {}).user == UserKey("", "ada")
    assert signed(headers(User=token({"session": "s"}), Session="h"), {}).session_id == "s"


def test_unsigned_users_are_strangers_if_users_are_signed(signed):
    assert signed(headers(User="ada"), {}) == Identity(None, reason="unsigned")
    assert signed([], {"client_id": "ada"}) == Identity(None, reason="unsigned")
    assert signed([], {}) == Identity(None)
    assert signed(headers(Tenant="shop"), {}) == Identity(None)


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1_000_000_000},
        {"exp": None},
        {"exp": "soon"},
        {"exp": 1e400},
        {"nbf": EXP},
        {"iat": EXP},
        {"sub": None},
        {"sub": 7},
        {"tenant": 7},
        {"tenant": None},
        {"session": ["s"]},
        {"aud": "another service"},
    ],
)
def test_an_invalid_token_names_a_stranger(signed, claims):
    payload = {"sub": "ada", "exp": EXP} | claims
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, payload)]
    made = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = base64.urlsafe_b64encode(hmac.digest(SECRET, made, hashlib.sha256)).rstrip(b"=")
    assert signed(headers(User=made + b"." + signature), {}) == Identity(None, reason="bad_token")


def test_a_token_holds_until_it_expires_with_some_leeway(signed):
    now = int(time.time())
    assert signed(headers(User=token({"exp": now + 60})), {}).user == UserKey("", "ada")
    assert signed(headers(User=token({"exp": now - 600})), {}).reason == "bad_token"


def test_a_changed_or_foreign_token_names_a_stranger(signed):
    good = token({})
    header, payload, signature = good.split(".")
    foreign = token({}, b"another secret of thirty-two bytes")
    unsigned = jwt.encode({"sub": "ada", "exp": EXP}, None, algorithm="none")
    for bad in (foreign, unsigned, f"{header}.{payload[:-2]}AA.{signature}", f"{header}.{payload}.", "a.b.c",
                good + "A" * 9000):  # fmt: skip
        assert signed(headers(User=bad), {}) == Identity(None, reason="bad_token")


def test_an_invalid_sub_names_nobody(signed):
    for sub in ("", "a" * 257):
        assert signed(headers(User=token({"sub": sub})), {}) == Identity(None, reason="bad_identity")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_public_keys_pin_their_algorithm(keys, key_file, algorithm):
    key = JwtKey.read(key_file(pem(keys[algorithm])))
    assert key.algorithm == algorithm
    ask = Identify(key)
    assert ask(headers(User=token({}, keys[algorithm], algorithm)), {}).user == UserKey("", "ada")
    for other in keys:
        if other != algorithm:
            assert ask(headers(User=token({}, keys[other], other)), {}).reason == "bad_token"


def test_a_public_key_is_not_accepted_as_a_secret(keys, key_file):
    """The classic attack: HS256, signed with the public key's own bytes."""
    public = pem(keys["RS256"])
    ask = Identify(JwtKey.read(key_file(public)))
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, {"sub": "ada", "exp": EXP})]
    made = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = base64.urlsafe_b64encode(hmac.digest(public, made, hashlib.sha256)).rstrip(b"=")
    assert ask(headers(User=made + b"." + signature), {}).reason == "bad_token"


def test_an_audience_is_honoured(key_file):
    ask = Identify(JwtKey.read(key_file(SECRET), audience="bespeak"))
    assert ask(headers(User=token({"aud": ["bespeak", "x"]})), {}).user == UserKey("", "ada")
    assert ask(headers(User=token({"aud": "x"})), {}).reason == "bad_token"
    assert ask(headers(User=token({})), {}).reason == "bad_token"


def test_the_line_end_of_a_secret_is_not_part_of_it(key_file):
    assert JwtKey.read(key_file(SECRET + b"\r\n")).key == SECRET
    binary = bytes(range(200, 240)) + b"\n"
    assert JwtKey.read(key_file(binary)).key == binary


def test_a_key_is_not_shown(key_file):
    assert "0123" not in repr(JwtKey.read(key_file(SECRET)))


def test_an_invalid_key_is_refused_at_the_start(tmp_path, keys, key_file):
    der = (
        keys["RS256"]
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    odd = ec.generate_private_key(ec.SECP384R1())
    ssh = keys["EdDSA"].public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    jwk = json.dumps({"kty": "OKP", "crv": "Ed25519", "x": "A" * 43}).encode()
    for content in (private_pem(keys["RS256"]), pem(weak), pem(odd), der, ssh, jwk, SECRET[:31], SECRET[:31] + b"\n",
                    b"", b"-----BEGIN PUBLIC KEY-----\nnot base64\n-----END PUBLIC KEY-----\n"):  # fmt: skip
        with pytest.raises(InputError):
            JwtKey.read(key_file(content))
    with pytest.raises(InputError):
        JwtKey.read(tmp_path / "missing")


users = st.builds(UserKey, st.text(max_size=20), st.text(min_size=1, max_size=20))


@given(users, st.floats(0, 1), st.floats(0, 1))
def test_a_growing_share_keeps_its_users(user, one, other):
    assert Share(min(one, other)).includes(user) <= Share(max(one, other)).includes(user)


@given(users)
def test_shares_of_all_and_of_none(user):
    assert Share(1.0).includes(user)
    assert not Share(0.0).includes(user)


def test_a_share_includes_about_that_many_users():
    for share in (0.1, 0.5):
        found = sum(Share(share).includes(UserKey("shop", f"user{n}")) for n in range(10_000))
        assert abs(found - 10_000 * share) < 250  # five standard deviations at one half


def test_a_share_includes_the_same_users_in_every_release():
    """These are in, those are not: a change here would move users between the groups of a running experiment."""
    found = [n for n in range(40) if Share(0.1).includes(UserKey("", f"user{n}"))]
    assert found == [n for n in range(40) if int.from_bytes(hashlib.blake2b(
        f"0:user{n}".encode(), digest_size=8, person=b"bespeak share").digest()) < 2**64 // 10]  # fmt: skip
    assert found


def test_tenant_and_user_are_kept_apart():
    places = {Share(0.5).includes(UserKey("a" * n, "a" * (24 - n))) for n in range(24)}
    assert places == {True, False}


def test_a_share_may_be_changed_while_in_use():
    share, user = Share(), UserKey("", "ada")
    assert share.includes(user)
    share.set(0)
    assert not share.includes(user)
    with pytest.raises(UsageError):
        share.set(1.1)
    assert share.value == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10%", 0.1),
        ("0.1", 0.1),
        ("100%", 1.0),
        ("0", 0.0),
        ("0%", 0.0),
        ("1.0", 1.0),
        (" 2.5% \n", 0.025),
        ("1%", 0.01),
    ],
)
def test_shares_are_read(text, value):
    assert Share.parse(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["", "1", "10", "101%", "1.1", "-1%", "nan", "inf", "1e-1", "ten", "10 %%", "१०%", "1/10"]
)
def test_an_invalid_share_is_refused(text):
    with pytest.raises(UsageError):
        Share.parse(text)
    with pytest.raises(UsageError):
        Share(float("nan"))


def test_a_tenant_comes_from_its_header():
    assert tenant_of([]) == ""
    assert tenant_of(headers(Tenant="shop")) == "shop"
    with pytest.raises(UsageError):
        tenant_of(headers(Tenant=b"\xff"))
