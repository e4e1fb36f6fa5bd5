"""Identity tokens: what is accepted, everything that is not, and what an issuer is asked for."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from jwt.algorithms import get_default_algorithms
from jwt.warnings import InsecureKeyLengthWarning

from lora_contract.errors import RegistryError
from lora_contract.roles import Grant
from lora_registry.oidc import fetch
from lora_registry.oidc.keys import WAITING, KeyCache, KeySource, load, parse_jwks
from lora_registry.oidc.refusal import ACCEPTED_BY_NONE, RefusedTokenError
from lora_registry.oidc.rules import MAX_CALLER, TrustRule, choose
from lora_registry.oidc.verdicts import MAX_VERDICTS, Verdicts
from lora_registry.oidc.verify import MAX_TOKEN, Identity, looks_like_jwt, verify
from tests.support.issuer import AUDIENCE, Issuer, Key, github, issuer, kubernetes
from tests.support.tls import tls_front


class Seconds(int):
    """A time, so many seconds from when the token is made. Collecting tests may be long before that."""


def dated(claims: dict[str, Any]) -> dict[str, Any]:
    now = int(time.time())
    return {name: now + value if isinstance(value, Seconds) else value for name, value in claims.items()}


@pytest.fixture(scope="module")
def made() -> Iterator[Issuer]:
    with issuer() as running:
        yield running


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def check(made: Issuer, token: str, keys: KeyCache | None = None) -> Identity:
    return verify(token, {made.url: KeySource(made.url)}, keys or KeyCache())


def refused(made: Issuer, token: str, keys: KeyCache | None = None) -> RefusedTokenError:
    with pytest.raises(RefusedTokenError) as caught:
        check(made, token, keys)
    return caught.value


def signed(header: dict[str, Any], claims: dict[str, Any], sign: Any) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=") for each in (header, claims)]
    signature = base64.urlsafe_b64encode(sign(b".".join(parts))).rstrip(b"=")
    return b".".join([*parts, signature]).decode()


def test_a_token_says_who_sends_it(made: Issuer) -> None:
    token = made.token(kubernetes())
    identity = check(made, token)
    assert looks_like_jwt(token)
    assert not looks_like_jwt("hf_abcdef")
    assert (identity.issuer, identity.audience, identity.access) == (made.url, AUDIENCE, False)
    assert identity.claims["kubernetes.io/serviceaccount/name"] == "vllm"
    assert check(made, made.token({"jti": "a", "x": 1})).once == check(made, made.token({"jti": "a", "x": 2})).once
    assert check(made, made.token({"jti": "a"})).once != check(made, made.token({"jti": "b"})).once
    assert check(made, made.token({"jti": None, "x": 1})).once != check(made, made.token({"jti": None, "x": 2})).once
    assert check(made, made.token({}, headers={"typ": "at+jwt"})).access


@pytest.mark.parametrize("algorithm", ["RS256", "PS384", "ES256", "ES384", "ES512", "EdDSA"])
def test_algorithms(algorithm: str, made: Issuer) -> None:
    key = Key("other", algorithm)
    source = {made.url: KeySource(made.url, jwks=json.dumps({"keys": [key.jwk]}))}
    assert verify(made.token(github(), key=key), source, KeyCache()).claims["repository_id"] == "74"
    without = {name: value for name, value in key.jwk.items() if name not in ("alg", "use")}
    source = {made.url: KeySource(made.url, jwks=json.dumps({"keys": [without]}))}
    assert verify(made.token({}, key=key), source, KeyCache()).issuer == made.url


def test_a_header_may_have_no_type() -> None:
    """As Kubernetes writes it."""
    claims = {"iss": "https://i.example", "aud": [AUDIENCE], "iat": Seconds(0), "exp": Seconds(300)}
    token = signed({"alg": "ES256", "kid": "fast"}, dated(claims), lambda text: ES256.sign(text, FAST.private))
    assert verify(token, TRUSTED, CACHE).audience == AUDIENCE


@pytest.mark.parametrize(
    ("claims", "public"),
    [
        ({"exp": Seconds(-60)}, "The identity token has expired."),
        ({"exp": Seconds(-60), "iss": "https://unknown.example"}, "The identity token has expired."),
        ({"nbf": Seconds(300)}, "The identity token is not yet valid."),
        ({"iat": Seconds(300)}, "The identity token is not yet valid."),
        ({"exp": None}, ACCEPTED_BY_NONE),
        ({"iat": None}, ACCEPTED_BY_NONE),
        ({"aud": None}, ACCEPTED_BY_NONE),
        ({"iss": None}, ACCEPTED_BY_NONE),
        ({"iss": "https://unknown.example"}, ACCEPTED_BY_NONE),
        ({"aud": [AUDIENCE, "another"]}, ACCEPTED_BY_NONE),
        ({"aud": []}, ACCEPTED_BY_NONE),
        ({"aud": [[AUDIENCE]]}, ACCEPTED_BY_NONE),
        ({"exp": "soon"}, ACCEPTED_BY_NONE),
        ({"exp": float("inf")}, ACCEPTED_BY_NONE),
        ({"exp": float("nan")}, ACCEPTED_BY_NONE),
        ({"iat": float("-inf")}, ACCEPTED_BY_NONE),
        ({"jti": 7}, ACCEPTED_BY_NONE),
        ({"sub": 7}, ACCEPTED_BY_NONE),
        ({"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}, ACCEPTED_BY_NONE),
        ({"kubernetes.io": {"namespace": "a"}, "kubernetes.io/namespace": "b"}, ACCEPTED_BY_NONE),
        ({"deep": json.loads('{"a":' * 40 + "1" + "}" * 40)}, ACCEPTED_BY_NONE),
    ],
)
def test_claims_that_are_refused(claims: dict[str, Any], public: str, made: Issuer) -> None:
    assert refused(made, made.token(dated(claims))).public == public


def test_a_clock_may_differ_by_half_a_minute(made: Issuer) -> None:
    now = int(time.time())
    assert check(made, made.token({"iat": now + 20, "nbf": now + 20}))
    assert check(made, made.token({"exp": now - 20}))


def test_algorithms_that_are_refused(made: Issuer) -> None:
    """None at all, and the issuer's public key as the secret of a symmetric one."""
    pem = made.key.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    claims = dated({"iss": made.url, "aud": AUDIENCE, "iat": Seconds(0), "exp": Seconds(300)})
    for algorithm in ("none", "None", "NONE", ""):
        refused(made, signed({"alg": algorithm, "kid": "first"}, claims, lambda _: b""))
    for secret in (pem, json.dumps(made.key.jwk).encode(), made.key.jwk["n"].encode()):
        token = signed(
            {"alg": "HS256", "kid": "first"},
            claims,
            lambda text, secret=secret: hmac.new(secret, text, hashlib.sha256).digest(),
        )
        assert "algorithm" in refused(made, token).reason
    refused(made, signed({"kid": "first"}, claims, lambda _: b""))
    symmetric = {"keys": [{"kty": "oct", "kid": "first", "k": "c2VjcmV0", "alg": "HS256"}]}
    with pytest.raises(ValueError, match="no public signing key"):
        parse_jwks(symmetric)


@pytest.mark.parametrize(
    "headers",
    [
        {"kid": None},
        {"kid": "unknown"},
        {"typ": "logout+jwt"},
        {"typ": "secevent+jwt"},
        {"alg": "RS512"},
    ],
)
def test_headers_that_are_refused(headers: dict[str, Any], made: Issuer) -> None:
    assert refused(made, made.token(github(), headers=headers)).public == ACCEPTED_BY_NONE


def test_a_key_of_another_kind_or_too_short_verifies_nothing(made: Issuer) -> None:
    short = Key("short", bits=1024)
    source = {made.url: KeySource(made.url, jwks=json.dumps({"keys": [short.jwk]}))}
    with pytest.warns(InsecureKeyLengthWarning):
        token = made.token({}, key=short)
    with pytest.raises(RefusedTokenError):
        verify(token, source, KeyCache())
    curve = Key("curve", "ES384")
    wrong = {**curve.jwk, "alg": "ES256"}
    source = {made.url: KeySource(made.url, jwks=json.dumps({"keys": [wrong]}))}
    with pytest.raises(RefusedTokenError):
        verify(made.token({}, key=curve), source, KeyCache())


def test_what_is_no_token(made: Issuer) -> None:
    whole = made.token({})
    head, body, signature = whole.split(".")
    forged = (
        base64.urlsafe_b64encode(json.dumps(dated({"iss": made.url, "exp": Seconds(300)})).encode())
        .rstrip(b"=")
        .decode()
    )
    for token in (
        "",
        "..",
        "a.b.c",
        whole[:-3] + "abc",
        f"{head}.{forged}.{signature}",
        f"{head}.{body}.",
        whole + ".x",
        "ey" + "[" * 9000 + ".e30.x",
        base64.urlsafe_b64encode(b"[" * 6000).decode().rstrip("=") + f".{body}.{signature}",
        f"{head}.{base64.urlsafe_b64encode(b'[' * 6000).decode().rstrip('=')}.{signature}",
        made.token({}, headers={"crit": ["exp"]}),
        made.token({}, headers={"crit": ["b64"], "b64": True}),
        "e" * (MAX_TOKEN + 1),
        "\u2603.\u2603.\u2603",
    ):
        refused(made, token)


def test_nothing_is_fetched_from_a_url_that_the_token_names(made: Issuer) -> None:
    with issuer() as evil:
        headers = {"jku": f"{evil.url}/jwks", "x5u": f"{evil.url}/jwks", "jwk": evil.key.jwk}
        evil.key.kid = "first"
        assert "Signature" in refused(made, made.token({}, key=evil.key, headers=headers)).reason
        assert "no trust rule" in refused(made, evil.token({}, headers=headers)).reason
        assert evil.requests == []


def test_keys_are_cached_and_refreshed_at_most_once_a_minute() -> None:
    clock = Clock()
    with issuer() as made:
        keys = KeyCache(clock=clock)
        for _ in range(3):
            check(made, made.token({}), keys)
        assert len(made.requests) == 2  # discovery and keys
        second = Key("second")
        made.publish(made.key, second)
        for _ in range(3):
            refused(made, made.token({}, key=Key("unknown")), keys)
        refused(made, made.token({}, key=second), keys)
        assert len(made.requests) == 2
        clock.now += 61
        check(made, made.token({}, key=second), keys)
        assert len(made.requests) == 4
        made.documents.clear()  # the issuer is down: known keys still count
        clock.now += 61
        refused(made, made.token({}, key=Key("unknown")), keys)
        assert len(made.requests) == 5
        check(made, made.token({}, key=second), keys)
        made.documents["/.well-known/openid-configuration"] = json.dumps(
            {"issuer": made.url, "jwks_uri": f"{made.url}/jwks"}
        ).encode()
        made.documents["/jwks"] = b'{"keys": []}'  # an empty set is an error too
        clock.now += 61
        refused(made, made.token({}, key=Key("unknown")), keys)
        check(made, made.token({}, key=second), keys)
        made.publish(second)  # withdrawn: forgotten within the hour
        clock.now += 3601
        refused(made, made.token({}), keys)
        check(made, made.token({}, key=second), keys)


def test_an_issuer_cannot_exhaust_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    with issuer() as made:
        made.publish(made.key, padding="x" * fetch.MAX_BYTES)
        assert "no RSA key" in refused(made, made.token({})).reason
        with pytest.raises(fetch.FetchError, match="larger than"):
            load(KeySource(made.url))
        made.documents["/jwks"] = json.dumps({"keys": [made.key.jwk] * 101}).encode()
        with pytest.raises(ValueError, match="101 keys"):
            load(KeySource(made.url))
        made.documents["/jwks"] = b"[" * 100_000
        with pytest.raises(fetch.FetchError, match="not JSON"):
            load(KeySource(made.url))
        made.publish(made.key)
        monkeypatch.setattr(fetch, "SECONDS", 0.2)
        made.delay = 0.5
        with pytest.raises(fetch.FetchError, match="cannot be read"):
            load(KeySource(made.url))


def test_a_slow_issuer_holds_few_threads() -> None:
    """Of many tokens with unknown keys, some wait for the issuer, and the others are told to come back."""
    with issuer() as made:
        made.delay = 0.3
        keys, outcomes = KeyCache(), []

        def attempt() -> None:
            try:
                check(made, made.token({}), keys)
                outcomes.append("verified")
            except RegistryError as error:
                outcomes.append(error.code)

        threads = [threading.Thread(target=attempt) for _ in range(WAITING + 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["unavailable"] * 4 + ["verified"] * WAITING
        assert len(made.requests) == 2


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": "https://another.example", "jwks_uri": "{url}/jwks"},
        {"issuer": "{url}"},
        {"issuer": "{url}", "jwks_uri": "ftp://127.0.0.1/jwks"},
        {"issuer": "{url}", "jwks_uri": "http://keys.example/jwks"},
        {"issuer": "{url}", "jwks_uri": "https://user:secret@keys.example/jwks"},
    ],
)
def test_discovery_documents_that_are_refused(document: dict[str, str], made: Issuer) -> None:
    with issuer() as other:
        text = json.dumps(document).replace("{url}", other.url)
        other.documents["/.well-known/openid-configuration"] = text.encode()
        refused(other, other.token({}))
        assert other.requests == ["/.well-known/openid-configuration"]


def test_an_issuer_behind_its_own_certificate(made: Issuer, tmp_path: Path) -> None:
    """As a cluster has it: keys at a given URL, a CA of its own, and an issuer that resolves nowhere."""
    with tls_front(target_port=int(made.url.rpartition(":")[2]), folder=tmp_path) as front:
        name = "https://kubernetes.default.svc.cluster.local"
        url, ca = f"https://127.0.0.1:{front.port}/jwks", front.certificate.read_text()
        token = made.token(kubernetes(iss=name))
        assert verify(token, {name: KeySource(name, jwks_url=url, ca=ca)}, KeyCache()).issuer == name
        with pytest.raises(RefusedTokenError):
            verify(token, {name: KeySource(name, jwks_url=url)}, KeyCache())


@pytest.mark.parametrize(
    "url", ["http://issuer.example", "https://", "ftp://x", "https://u:p@h/", "https://h/?q=1", "https://h/#f", "h"]
)
def test_urls_that_are_no_issuer(url: str) -> None:
    with pytest.raises(ValueError, match="issuer"):
        fetch.check_url(url, what="The issuer")


def test_verdicts_last_a_minute_at_most() -> None:
    clock = Clock()
    kept: Verdicts[str] = Verdicts(clock=clock)
    kept.put("long", "a", until=clock.now + 3600)
    kept.put("short", "b", until=clock.now + 10)
    assert (kept.get("long"), kept.get("short"), kept.get("none")) == ("a", "b", None)
    clock.now += 11
    assert (kept.get("long"), kept.get("short")) == ("a", None)
    clock.now += 50
    assert kept.get("long") is None
    for number in range(MAX_VERDICTS + 10):
        kept.put(str(number), "x", until=clock.now + 60)
    assert kept.get("0") is None
    assert kept.get(str(MAX_VERDICTS)) == "x"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
NAMES = (
    "aud",
    "exp",
    "iat",
    "nbf",
    "jti",
    "sub",
    "ref",
    "sha",
    "azp",
    "groups",
    "event_name",
    "kubernetes.io",
    "events",
)
RULES = [
    TrustRule(1, "one", "person", "https://i.example", AUDIENCE, {"groups": "ml"}, (), 900),
    TrustRule(2, "two", "other", "https://i.example", AUDIENCE, {"ref": "a*"}, (), 900),
    TrustRule(3, "three", "kubernetes", "https://i.example", AUDIENCE, {"kubernetes.io/namespace": "x"}, (), 900),
    TrustRule(4, "four", "github", "https://i.example", AUDIENCE, {}, (Grant("*", "admin"),), 900),
]
FAST = Key("fast", "ES256")
TRUSTED = {"https://i.example": KeySource("https://i.example", jwks=json.dumps({"keys": [FAST.jwk]}))}
CACHE = KeyCache()
ES256 = get_default_algorithms()["ES256"]
WHOLE = jwt.encode(
    dated({"iss": "https://i.example", "aud": AUDIENCE, "iat": Seconds(0), "exp": Seconds(6 * 3600), "sub": "x"}),
    FAST.private,
    algorithm="ES256",
    headers={"kid": "fast"},
)


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
@hypothesis.given(claims=st.dictionaries(st.sampled_from(NAMES), values, max_size=4))
def test_whatever_a_trusted_issuer_signs_is_recognized_or_refused(claims: dict[str, Any]) -> None:
    whole = {
        "iss": "https://i.example",
        "aud": AUDIENCE,
        "iat": int(time.time()),
        "exp": int(time.time()) + 60,
        **claims,
    }
    parts = [{"alg": "ES256", "kid": "fast", "typ": "JWT"}, whole]
    text = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    signature = base64.urlsafe_b64encode(ES256.sign(text, FAST.private)).rstrip(b"=").decode()
    try:
        found = choose(RULES, verify(f"{text.decode()}.{signature}", TRUSTED, CACHE))
    except RefusedTokenError:
        return
    assert found.name.isprintable()
    assert len(found.name) <= MAX_CALLER
    assert 0 < found.seconds <= 900


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
@hypothesis.given(data=st.data())
def test_no_token_that_was_changed_is_accepted(data: st.DataObject) -> None:
    token = WHOLE
    at = data.draw(st.integers(0, len(token) - 1))
    new = data.draw(st.characters(codec="ascii"))
    changed = token[:at] + new + token[at + data.draw(st.integers(0, 2)) :]
    hypothesis.assume(changed != token)
    with pytest.raises(RefusedTokenError):
        verify(changed, TRUSTED, CACHE)
