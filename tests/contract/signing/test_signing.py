"""Envelopes, statements and keys: DSSE's own vectors, and nothing but what they mean is read."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from hypothesis import given
from hypothesis import strategies as st

from lora_contract import canonical
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.signing import (
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    Envelope,
    Signature,
    check_statement,
    make_statement,
    pae,
    parse_public_key,
    payload_of,
    signatures_of,
    wrap_signature,
)
from lora_contract.signing.dsse import MAX_PAYLOAD_BYTES, decode_base64
from lora_contract.signing.keys import parse_der
from tests.support.signing import Signer

DIGEST = Digest("ab" * 32)
STATEMENT = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [{"name": "acme/sql", "digest": {"sha256": DIGEST.hex}}],
    "predicateType": PREDICATE_TYPE,
    "predicate": {},
}


def envelope(payload: str, kind: str = PAYLOAD_TYPE, sig: str = "") -> Envelope:
    return Envelope(payload=payload, payload_type=kind, signatures=[Signature(sig=sig)])


def refused(code: str, function, *arguments, **keys) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        function(*arguments, **keys)
    assert caught.value.code == code
    return caught.value


# secure-systems-lab/dsse: the example of protocol.md, and testvectors/vectors.json, whose keys are those of RFC 8032, 7.1.

VECTORS = [
    ("http://example.com/HelloWorld", b"hello world", b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"),
    (
        "application/vnd.exämple+json",
        b'{"_type":"https://in-toto.io/Statement/v1"}',
        bytes.fromhex(
            "445353457631203239206170706c69636174696f6e2f766e642e6578c3a46d706c652b6a736f6e203433207b225f74797065223a"
            "2268747470733a2f2f696e2d746f746f2e696f2f53746174656d656e742f7631227d"
        ),
    ),
    (
        PAYLOAD_TYPE,
        b"",
        bytes.fromhex("445353457631203238206170706c69636174696f6e2f766e642e696e2d746f746f2b6a736f6e203020"),
    ),
    ("", b"{}", b"DSSEv1 0  2 {}"),
]


@pytest.mark.parametrize(("kind", "payload", "expected"), VECTORS)
def test_what_is_signed_is_encoded_as_the_standard_says(kind: str, payload: bytes, expected: bytes) -> None:
    assert pae(kind, payload) == expected


@pytest.mark.parametrize(
    ("payload", "signature"),
    [
        (
            "eyJfdHlwZSI6Imh0dHBzOi8vaW4tdG90by5pby9TdGF0ZW1lbnQvdjEifQ==",
            "2WAfaHm5jluo0w+0rk8uVkluELJYWjSmU9x7EUzx+AyteDGJ4/nqyJXfmAUVFIAoQafWm7AxBZNw5M9ixNHiCA==",
        ),
        ("-_-_Pj8=", "P-_KHICeR7tI6S_YyejJTRtrXhcQyQ2LYPaL8h90KjC9qN8HU_svOQ6TuDOT1HIrsGW886DbWNWcCmX5twLrAw=="),
        ("", "gSggCAaTLTYyRH6FIDBem6meyIynsYy8RTHVzwx9tnTb7Bg/1jMWnuVgI/gffqmbsC2VX5/jHfkkDqsj7CDbDg=="),
    ],
    ids=["standard", "url-safe", "empty"],
)
def test_signatures_of_the_standard_are_signatures_of_what_is_read(payload: str, signature: str) -> None:
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    private = Ed25519PrivateKey.from_private_bytes(seed)
    found = envelope(payload, sig=signature)
    (signed,) = signatures_of(found)
    message = pae(PAYLOAD_TYPE, payload_of(found))
    private.public_key().verify(signed, message)
    with pytest.raises(InvalidSignature):
        private.public_key().verify(signed, pae("application/vnd.example.other+json", payload_of(found)))
    if "-" not in payload:
        assert wrap_signature(payload_of(found), signed, "A").payload == payload


@given(st.binary(max_size=300), st.booleans())
def test_base64_is_read_in_either_alphabet_and_one_spelling_alone(data: bytes, url_safe: bool) -> None:
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(data).decode()
    assert decode_base64(text, what="It", max_bytes=300) == data
    for other in (text + "\n", " " + text, text + "=", text.rstrip("=") if text.endswith("=") else text + "A"):
        refused("invalid-request", decode_base64, other, what="It", max_bytes=1000)


@pytest.mark.parametrize("text", ["AB==", "A", "-_+/", "ä===", "QQ", "QQ=", "Q Q=", "QUI=QUI=", "\0"])
def test_what_is_almost_base64_is_refused(text: str) -> None:
    error = refused("invalid-request", decode_base64, text, what="It", max_bytes=100)
    assert text not in error.detail or len(text) < 2


def test_sizes_are_capped() -> None:
    full = base64.b64encode(bytes(MAX_PAYLOAD_BYTES)).decode()
    assert len(payload_of(envelope(full))) == MAX_PAYLOAD_BYTES
    refused("invalid-request", payload_of, envelope(base64.b64encode(bytes(MAX_PAYLOAD_BYTES + 1)).decode()))
    refused("invalid-request", payload_of, envelope("A" * (8 << 20)))
    refused("invalid-request", signatures_of, envelope("", sig=base64.b64encode(bytes(130)).decode()))


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=60))
def test_no_envelope_breaks_the_parser(payload: str, sig: str, kind: str) -> None:
    found = envelope(payload, sig=sig)
    for read in (payload_of, signatures_of):
        try:
            read(found)
        except RegistryError as error:
            assert error.code == "invalid-request"
    if kind != PAYLOAD_TYPE:
        refused("invalid-request", payload_of, envelope("", kind=kind))


# Statements


def test_a_statement_is_about_one_version_of_one_repository() -> None:
    payload = make_statement("acme", "sql", DIGEST)
    assert json.loads(payload) == STATEMENT
    check_statement(payload, "acme", "sql", DIGEST)
    refused("signature-mismatch", check_statement, payload, "acme", "other", DIGEST)
    refused("signature-mismatch", check_statement, payload, "other", "sql", DIGEST)
    refused("signature-mismatch", check_statement, payload, "acme", "sql", Digest("cd" * 32))


def test_a_statement_may_be_written_otherwise_and_hold_more() -> None:
    written = json.dumps({**STATEMENT, "predicate": {"by": "us"}, "future": [1]}, indent=4).encode()
    check_statement(written, "acme", "sql", DIGEST)


SUBJECT = STATEMENT["subject"][0]


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"_type": "https://in-toto.io/Statement/v0.1"}, "invalid-request"),
        ({"predicateType": "https://example.com/tests-failed/v1"}, "invalid-request"),
        ({"predicateType": None}, "invalid-request"),
        ({"subject": []}, "invalid-request"),
        ({"subject": [SUBJECT, SUBJECT]}, "invalid-request"),
        ({"subject": SUBJECT}, "invalid-request"),
        ({"subject": ["acme/sql"]}, "invalid-request"),
        ({"subject": [{"name": "acme/sql"}]}, "signature-mismatch"),
        ({"subject": [{**SUBJECT, "digest": {}}]}, "signature-mismatch"),
        ({"subject": [{**SUBJECT, "digest": {"sha512": DIGEST.hex}}]}, "signature-mismatch"),
        ({"subject": [{**SUBJECT, "digest": {"sha256": DIGEST.hex, "sha512": "00"}}]}, "signature-mismatch"),
        ({"subject": [{**SUBJECT, "digest": {"sha256": DIGEST.hex.upper()}}]}, "signature-mismatch"),
        ({"subject": [{**SUBJECT, "digest": DIGEST.hex}]}, "signature-mismatch"),
        ({"subject": [{**SUBJECT, "name": "acme/sql:v1"}]}, "signature-mismatch"),
        ({"subject": [{**SUBJECT, "name": 7}]}, "signature-mismatch"),
    ],
)
def test_another_statement_does_not_stand_for_the_version(changed, code: str) -> None:
    refused(code, check_statement, json.dumps({**STATEMENT, **changed}).encode(), "acme", "sql", DIGEST)


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b"\xff", b"[" * 3000, b'{"_type":1,"_type":1}', b"1e999"])
def test_what_is_no_statement_is_refused(payload: bytes) -> None:
    refused("invalid-request", check_statement, payload, "acme", "sql", DIGEST)


def test_two_subjects_of_one_key_are_one_too_many() -> None:
    """Parsers differ in which of two equal keys they take: the one that is shown must be the one that is checked."""
    twice = make_statement("acme", "sql", DIGEST).replace(b'"subject":', b'"subject":[],"subject":')
    refused("invalid-request", check_statement, twice, "acme", "sql", DIGEST)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_payload_breaks_the_parser(payload: bytes) -> None:
    with pytest.raises(RegistryError) as caught:
        check_statement(payload, "acme", "sql", DIGEST)
    assert caught.value.code in ("invalid-request", "signature-mismatch")


@given(st.dictionaries(st.sampled_from(list(STATEMENT)), JSON, min_size=1))
def test_no_field_can_be_anything_else(changed) -> None:
    if all(key == "predicate" or STATEMENT[key] == value for key, value in changed.items()):
        return
    with pytest.raises(RegistryError):
        check_statement(canonical.dumps({**STATEMENT, **changed}), "acme", "sql", DIGEST)


@given(st.integers(0, len(make_statement("acme", "sql", DIGEST)) - 1), st.integers(1, 255))
def test_a_byte_of_a_statement_cannot_change_and_mean_the_same(position: int, flip: int) -> None:
    payload = bytearray(make_statement("acme", "sql", DIGEST))
    payload[position] ^= flip
    try:
        check_statement(bytes(payload), "acme", "sql", DIGEST)
    except RegistryError:
        return
    # What the check passes over, the signature does not: only the name of a field that is not read may have changed.
    assert b'"predicate":{}' not in payload


# Keys


@pytest.mark.parametrize("curve", [False, True], ids=["ed25519", "p256"])
def test_a_key_is_read_from_pem_and_from_its_base64(curve: bool) -> None:
    signer = Signer(curve)
    key = signer.public
    for text in (signer.pem, key.text, f"\n {key.text}\n", signer.pem.replace("\n", "\r\n"), signer.pem + "\n"):
        assert parse_public_key(text) == key
    assert parse_public_key(signer.pem).der == signer.private.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    assert key.algorithm == ("ecdsa-p256" if curve else "ed25519")
    assert key.key_id == str(Digest.of(key.der))


def spki(private) -> str:
    public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(public).decode()


def test_other_keys_are_refused() -> None:
    for private in (Ed448PrivateKey.generate(), generate_private_key(SECP384R1())):
        refused("invalid-request", parse_public_key, spki(private))
    compressed = generate_private_key(SECP256R1()).public_key()
    text = base64.b64encode(compressed.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)).decode()
    for bad in (
        "",
        text,
        "-----BEGIN PUBLIC KEY-----",
        Signer().pem * 2,
        Signer().pem[:-30],
        "A" * 5000,
        " " * 100_000,
    ):
        refused("invalid-request", parse_public_key, bad)


def test_a_private_key_in_the_wrong_place_is_not_repeated(tmp_path) -> None:
    secret, _ = Signer().write(tmp_path)
    error = refused("invalid-request", parse_public_key, secret.read_text())
    assert secret.read_text().splitlines()[1] not in error.detail + error.hint
    assert "private key" in error.detail


@given(st.binary(min_size=64, max_size=64), st.booleans())
def test_points_that_are_taken_are_those_of_the_curve(point: bytes, good: bool) -> None:
    whole = Signer(curve=True).public.der
    der = whole if good else whole[:-64] + point
    try:
        key = parse_der(der)
    except RegistryError:
        with pytest.raises(ValueError):
            load_der_public_key(der)
    else:
        load_der_public_key(key.der)


@given(st.binary(max_size=120) | st.binary(min_size=32, max_size=32).map(lambda raw: Signer().public.der[:12] + raw))
def test_no_key_breaks_the_parser(der: bytes) -> None:
    try:
        assert parse_public_key(base64.b64encode(der).decode()).der == der
    except RegistryError as error:
        assert error.code == "invalid-request"


# Ed25519, computed here from RFC 8032, 5.1: affine points of -x^2 + y^2 = 1 + d x^2 y^2.

ED_P = 2**255 - 19
ED_D = -121665 * pow(121666, -1, ED_P) % ED_P
Point = tuple[int, int]


def ed_add(one: Point, other: Point) -> Point:
    (x1, y1), (x2, y2) = one, other
    product = ED_D * x1 * x2 * y1 * y2
    return (
        (x1 * y2 + x2 * y1) * pow(1 + product, -1, ED_P) % ED_P,
        (y1 * y2 + x1 * x2) * pow(1 - product, -1, ED_P) % ED_P,
    )


def ed_points(y: int) -> list[Point]:
    """The points with this y: two, one if x is 0, or none."""
    square = (y * y - 1) * pow(ED_D * y * y + 1, -1, ED_P) % ED_P
    root = pow(square, (ED_P + 3) // 8, ED_P)
    for x in (root, root * pow(2, (ED_P - 1) // 4, ED_P) % ED_P):
        if x * x % ED_P == square:
            return sorted({(x, y), (-x % ED_P, y)})
    return []


def ed_small() -> list[Point]:
    """The points of which 8 times is the identity: multiples of one of order 8, which L times a random point is."""
    order = 2**252 + 27742317777372353535851937790883648493
    for y in range(2, 100):
        for point in ed_points(y):
            found, power = (0, 1), point
            for bit in range(order.bit_length()):
                found = ed_add(found, power) if order >> bit & 1 else found
                power = ed_add(power, power)
            multiples = [(0, 1)]
            while (following := ed_add(multiples[-1], found)) != (0, 1):
                multiples.append(following)
            if len(multiples) == 8:
                return multiples
    raise AssertionError


def ed_key(y: int, sign: int) -> bytes:
    return Signer().public.der[:12] + (y | sign << 255).to_bytes(32, "little")


def test_keys_of_small_order_are_refused_in_every_encoding() -> None:
    """Of such a key one signature fits many messages, so that it proves nothing."""
    points = ed_small()
    assert len(set(points)) == 8
    encodings = {(y + shift, sign) for _, y in points for shift in (0, ED_P) for sign in (0, 1) if y + shift < 2**255}
    assert len(encodings) == 14
    assert load_der_public_key(ed_key(1, 0)).verify(ed_key(1, 0)[12:] + bytes(32), b"anything") is None
    for y, sign in sorted(encodings):
        error = refused("invalid-request", parse_public_key, base64.b64encode(ed_key(y, sign)).decode())
        assert "small order" in error.detail


def test_what_is_no_point_of_ed25519_is_refused() -> None:
    values = [y for y in range(2, 40) if not ed_points(y)]
    assert len(values) > 10
    for y in values:
        assert "curve" in refused("invalid-request", parse_der, ed_key(y, 0)).detail
    for y in range(ED_P, 2**255):
        for sign in (0, 1):
            refused("invalid-request", parse_der, ed_key(y, sign))
    for y in (y for y in range(2, 40) if ed_points(y)):
        assert parse_der(ed_key(y, 1)).algorithm == "ed25519"
