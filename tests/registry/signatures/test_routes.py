"""Signatures of versions: what is kept, what is refused, and what a policy counts, on each database."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from lora_contract.digest import Digest
from lora_contract.signing import make_statement, pae
from tests.registry.site import Site, problem, refuses_changes, unique
from tests.support.signing import PAYLOAD_TYPE, Signer

API = "/api/v1"


class Place:
    """A repository of two versions, and another one with the same content."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.name, self.twin = unique("signed"), unique("twin")
        self.versions = [site.pushed("ns", self.name, seed) for seed in (1, 2)]
        assert site.pushed("ns", self.twin, 1)["digest"] == self.digest()

    @property
    def repo(self) -> str:
        return f"{API}/repositories/ns/{self.name}"

    def digest(self, number: int = 1) -> str:
        digest: str = self.versions[number - 1]["digest"]
        return digest

    def body(self, signer: Signer, number: int = 1) -> dict[str, Any]:
        return signer.of_version("ns", self.name, self.digest(number))

    def send(self, body: Any, selector: str = "v1") -> httpx.Response:
        return self.site.client.post(f"{self.repo}/versions/{selector}/signatures", json=body)

    def sign(self, signer: Signer, number: int = 1) -> dict[str, Any]:
        answer = self.send(self.body(signer, number), f"v{number}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def listed(self, selector: str = "v1", **asked: Any) -> list[str]:
        answer = self.site.client.get(f"{self.repo}/versions/{selector}/signatures", params=asked)
        assert answer.status_code == 200, answer.text
        return [item["key_id"] for item in answer.json()["items"]]

    def check(self, keys: list[Signer], count: int = 1, selector: str = "v1") -> dict[str, Any]:
        """The gate's line about signatures, by a policy that is only tried."""
        document = {"signatures": {"keys": [key.pem for key in keys], "count": count}}
        body = {"version": selector, "tag": "prod", "document": document, "start": False}
        answer = self.site.client.post(f"{self.repo}/gates", json=body)
        assert answer.status_code in (200, 202), answer.text
        found: dict[str, Any] = next(item for item in answer.json()["checks"] if item["rule"] == "signatures")
        return found


@pytest.fixture
def place(site: Site) -> Place:
    return Place(site)


@pytest.mark.parametrize("curve", [False, True], ids=["ed25519", "p256"])
def test_a_signature_is_kept_as_it_came_and_counts(place: Place, curve: bool) -> None:
    signer, other = Signer(curve), Signer()
    assert place.check([signer])["state"] == "failed"
    body = place.body(signer)
    view = place.sign(signer)
    assert (view["key_id"], view["digest"], view["key"]) == (signer.public.key_id, place.digest(), signer.public.text)
    assert view["algorithm"] == ("ecdsa-p256" if curve else "ed25519")
    assert view["envelope"]["payload"] == body["envelope"]["payload"]
    assert place.listed() == [signer.public.key_id]
    assert place.check([signer])["state"] == "passed"
    assert place.check([signer, other])["state"] == "passed"
    assert place.check([other])["state"] == "failed"
    assert place.check([signer, other], count=2)["state"] == "failed"
    assert place.check([signer], selector="v2")["state"] == "failed"
    place.sign(other)
    assert place.check([signer, other], count=2)["state"] == "passed"
    (event,) = [
        event for event in place.site.events(f"ns/{place.name}")
        if event["kind"] == "version-signed" and event["facts"]["key"] == signer.public.key_id
    ]  # fmt: skip
    assert (event["subject"], event["facts"]["digest"]) == (f"ns/{place.name}:v1", place.digest())


def test_the_signature_of_one_key_counts_once(place: Place) -> None:
    """ECDSA signs the same with other bytes each time."""
    signer = Signer(curve=True)
    first = place.sign(signer)
    assert place.sign(signer) == first
    assert place.listed() == [signer.public.key_id]
    twice = place.body(signer)
    twice["envelope"]["signatures"] *= 2
    assert place.send(twice).json() == first
    assert place.check([signer, Signer()], count=2)["state"] == "failed"
    assert sum(event["kind"] == "version-signed" for event in place.site.events(f"ns/{place.name}")) == 1


def test_of_an_envelope_of_many_the_signature_of_the_named_key_is_kept(place: Place) -> None:
    signer, other = Signer(), Signer()
    body = place.body(signer)
    body["envelope"]["signatures"] = [
        *place.body(other)["envelope"]["signatures"],
        {"sig": body["envelope"]["signatures"][0]["sig"]},
    ]
    body["envelope"]["note"] = "envelopes may hold more, which nobody has signed"
    view = place.send(body).json()
    assert [one["keyid"] for one in view["envelope"]["signatures"]] == [signer.public.key_id]
    assert "note" not in view["envelope"]
    assert place.listed() == [signer.public.key_id]


def _flip(text: str, position: int) -> str:
    data = bytearray(base64.b64decode(text))
    data[position] ^= 1
    return base64.b64encode(bytes(data)).decode()


def _payload(place: Place, signer: Signer) -> dict[str, Any]:
    body = place.body(signer)
    return {**body, "envelope": {**body["envelope"], "payload": _flip(body["envelope"]["payload"], 40)}}


def _signature(place: Place, signer: Signer) -> dict[str, Any]:
    body = place.body(signer)
    signatures = [{"sig": _flip(body["envelope"]["signatures"][0]["sig"], 5)}]
    return {**body, "envelope": {**body["envelope"], "signatures": signatures}}


def _payload_type(place: Place, signer: Signer) -> dict[str, Any]:
    """The same statement, signed under another type and shown under ours."""
    payload = make_statement("ns", place.name, Digest.parse(place.digest()))
    envelope = signer.envelope(payload, payload_type="application/vnd.example.other+json")
    return {"envelope": {**envelope, "payloadType": PAYLOAD_TYPE}, "key": signer.pem}


def _other_type(place: Place, signer: Signer) -> dict[str, Any]:
    payload = make_statement("ns", place.name, Digest.parse(place.digest()))
    return {"envelope": signer.envelope(payload, payload_type="text/plain"), "key": signer.pem}


def _predicate(place: Place, signer: Signer) -> dict[str, Any]:
    payload = make_statement("ns", place.name, Digest.parse(place.digest()))
    payload = payload.replace(b"version-signature", b"tests-have-failed")
    return {"envelope": signer.envelope(payload), "key": signer.pem}


def _small_order(place: Place) -> dict[str, Any]:
    """The identity as the key and as R, and S = 0: Ed25519 verifies that for any message."""
    payload = make_statement("ns", place.name, Digest.parse(place.digest()))
    identity = bytes([1]) + bytes(31)
    signature = base64.b64encode(identity + bytes(32)).decode()
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": signature}],
    }
    return {"envelope": envelope, "key": base64.b64encode(Signer().public.der[:12] + identity).decode()}


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (_payload, "signature-mismatch"),
        (_signature, "signature-mismatch"),
        (_payload_type, "signature-mismatch"),
        (_other_type, "invalid-request"),
        (_predicate, "invalid-request"),
        (lambda place, signer: place.body(signer, 2), "signature-mismatch"),
        (lambda place, signer: signer.of_version("ns", place.twin, place.digest()), "signature-mismatch"),
        (lambda place, signer: signer.of_version("other", place.name, place.digest()), "signature-mismatch"),
        (lambda place, signer: {**place.body(Signer()), "key": signer.pem}, "signature-mismatch"),
        (lambda place, signer: {**place.body(signer), "key": "no key"}, "invalid-request"),
        (lambda place, signer: {**place.body(signer), **_small_order(place)}, "invalid-request"),
        (lambda place, signer: {"envelope": signer.envelope(b"x"), "key": signer.pem}, "invalid-request"),
        (lambda place, signer: {"envelope": signer.envelope(bytes(4097)), "key": signer.pem}, "invalid-request"),
        (lambda place, signer: {"envelope": {**place.body(signer)["envelope"], "signatures": []}, "key": signer.pem}, "invalid-request"),
        (lambda place, signer: {"envelope": [], "key": signer.pem}, "invalid-request"),
    ],
    ids=[
        "payload", "signature", "payload-type", "other-type", "predicate", "version", "repository", "namespace", "key",
        "no-key", "small-order", "no-statement", "large", "unsigned", "no-envelope",
    ],
)  # fmt: skip
def test_what_is_no_signature_of_this_version_is_not_kept(
    place: Place, make: Callable[[Place, Signer], Any], code: str
) -> None:
    signer = Signer()
    problem(place.send(make(place, signer)), code)
    assert place.listed() == []
    assert place.check([signer])["state"] == "failed"


def test_a_private_key_that_is_sent_is_refused_and_not_repeated(place: Place, tmp_path: Any) -> None:
    signer = Signer()
    secret = signer.write(tmp_path)[0].read_text()
    answer = place.send({**place.body(signer), "key": secret})
    problem(answer, "invalid-request")
    assert secret.splitlines()[1] not in answer.text


@pytest.mark.parametrize("what", ["signature", "version", "repository", "key"])
def test_a_row_that_was_never_verified_counts_for_nothing(place: Place, what: str) -> None:
    """Written into the database itself: the gate goes by the bytes, and not by the row's being there."""
    signer, good = Signer(), Signer()
    statement = {
        "version": make_statement("ns", place.name, Digest.parse(place.digest(2))),
        "repository": make_statement("ns", place.twin, Digest.parse(place.digest())),
    }.get(what, make_statement("ns", place.name, Digest.parse(place.digest())))
    signature = (Signer() if what == "key" else signer).sign(pae(PAYLOAD_TYPE, statement))
    if what == "signature":
        signature = bytes([signature[0] ^ 1]) + signature[1:]
    place.sign(good)
    engine = sa.create_engine(place.site.database)
    insert = sa.text(
        "insert into signature (version_id, key_id, key, statement, signature, author, created_at) "
        "select version_id, :key_id, :key, :statement, :signature, author, created_at from signature "
        "where key_id = :good"
    )
    row = {"key_id": signer.public.key_id, "key": signer.public.der, "statement": statement, "signature": signature}
    try:
        with engine.begin() as connection:
            assert connection.execute(insert, {**row, "good": good.public.key_id}).rowcount == 1
    finally:
        engine.dispose()
    assert set(place.listed()) == {good.public.key_id, signer.public.key_id}
    assert place.check([signer])["state"] == "failed"
    assert place.check([signer, good], count=2)["evidence"]["signed"] == [good.public.key_id]


def test_a_signature_cannot_be_taken_back(place: Place) -> None:
    place.sign(Signer())
    url = f"{place.repo}/versions/v1/signatures"
    for method in ("DELETE", "PUT", "PATCH"):
        problem(place.site.client.request(method, url), "method-not-allowed")
    refuses_changes(place.site.database, "update signature set key_id = ''", "delete from signature")
    assert len(place.listed()) == 1


def test_lists_go_on_by_cursors_and_find_one_key(place: Place) -> None:
    signers = [Signer() for _ in range(5)]
    for signer in signers:
        place.sign(signer)
    url, found, cursor = f"{place.repo}/versions/v1/signatures", [], None
    while True:
        page = place.site.client.get(url, params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        found += [item["key_id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == [signer.public.key_id for signer in signers]
    assert place.listed(key=signers[3].public.key_id) == [signers[3].public.key_id]
    assert place.listed(key=Signer().public.key_id) == []
    problem(place.site.client.get(url, params={"cursor": "x"}), "invalid-request")


def test_one_key_at_once_signs_once(place: Place) -> None:
    signer = Signer(curve=True)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: place.send(place.body(signer)), range(6)))
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    assert len({answer.text for answer in answers}) == 1
    assert place.listed() == [signer.public.key_id]


def test_what_is_deleted_cannot_be_signed(place: Place) -> None:
    signer = Signer()
    place.sign(signer, 2)
    assert place.site.client.delete(f"{place.repo}/versions/v2").status_code == 204
    problem(place.send(place.body(Signer(), 2), "v2"), "deleted")
    problem(place.site.client.get(f"{place.repo}/versions/v2/signatures"), "deleted")
    problem(place.send(place.body(signer, 1), "v9"), "not-found")


@pytest.mark.parametrize("text", ["acme", "AAAA", "secret"])
def test_a_policy_with_a_malformed_key_is_not_set(place: Place, text: str, tmp_path: Any) -> None:
    key = Signer().write(tmp_path)[0].read_text() if text == "secret" else text
    pattern = f"ns/{place.name}:{unique('t')}"
    body = {"pattern": pattern, "document": {"signatures": {"keys": [Signer().pem, key]}}}
    answer = place.site.client.put(f"{API}/policies", json=body)
    assert "signatures.keys[1]" in problem(answer, "invalid-request")["detail"]
    assert place.site.client.get(f"{API}/policies", params={"pattern": pattern}).json()["items"] == []
