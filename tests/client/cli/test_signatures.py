"""sign and verify by the command line, with keys that openssl makes, against a real registry and one that lies."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_contract.signing import pae
from lora_reg.cli.signatures import PASSPHRASE
from tests.support.command import ROOT, TINY, Home, fresh, variant
from tests.support.front import Answer, Front
from tests.support.service import InProcess
from tests.support.signing import Signer

QUERIES = TINY / "adapters" / "queries-v1"
need_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture
def pushed(home: Home) -> str:
    """A version, by its name without a digest."""
    name = f"{fresh()}/queries"
    home.ok("push", QUERIES, name, "--base", "tiny")
    return f"{name}:v1"


def openssl(*arguments: str | Path) -> bytes:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@need_openssl
@pytest.mark.parametrize("kind", [("ed25519",), ("EC", "-pkeyopt", "ec_paramgen_curve:P-256")], ids=["ed25519", "p256"])
def test_with_the_keys_that_the_help_makes(home: Home, pushed: str, tmp_path: Path, kind: tuple[str, ...]) -> None:
    key, public = tmp_path / "key.pem", tmp_path / "pub.pem"
    openssl("genpkey", "-algorithm", *kind, "-out", key)
    openssl("pkey", "-in", key, "-pubout", "-out", public)
    missing = home.run("verify", pushed, "--key", public)
    assert (missing.status, "no signature" in missing.err) == (7, True)
    signed = home.ok("sign", pushed, "--key", key)
    assert f"next: lora-reg verify {pushed} --key PUB.pem" in signed.err
    told = home.json("verify", pushed, "--key", public)
    assert (told["schema"], len(told["signatures"])) == ("lora-reg/verification/1", 1)
    (one,) = told["signatures"]
    der = openssl("pkey", "-pubin", "-in", public, "-outform", "DER")
    assert base64.b64decode(one["key"]) == der
    assert one["key_id"] in signed.out
    assert re.search(rf"{one['algorithm']}  .*  {one['key_id']}\n", home.ok("show", pushed).out)
    assert home.json("show", pushed)["signatures"] == told["signatures"]
    assert home.ok("verify", pushed, "--key", public, "-q").out == f"{pushed.partition(':')[0]}@{told['digest']}\n"
    assert home.ok("sign", pushed, "--key", key, "-q").out == f"{one['key_id']}\n"
    # Another program, knowing the standard alone, finds the same.
    envelope = one["envelope"]
    message, signature = tmp_path / "message", tmp_path / "signature"
    message.write_bytes(pae(envelope["payloadType"], base64.b64decode(envelope["payload"])))
    signature.write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    digest = () if kind[0] == "ed25519" else ("-digest", "sha256")
    openssl("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", *digest, "-in", message, "-sigfile", signature)
    statement = json.loads(base64.b64decode(envelope["payload"]))
    subject = {"name": pushed.partition(":")[0], "digest": {"sha256": told["digest"].removeprefix("sha256:")}}
    assert (statement["_type"], statement["subject"]) == ("https://in-toto.io/Statement/v1", [subject])


def test_each_key_that_is_named_must_have_signed(home: Home, pushed: str, tmp_path: Path) -> None:
    (ann, anns), (ben, bens) = Signer().write(tmp_path / "ann"), Signer(curve=True).write(tmp_path / "ben")
    home.ok("sign", pushed, "--key", ann)
    assert home.run("verify", pushed, "--key", anns, "--key", bens).status == 7
    home.ok("sign", pushed, "--key", ben)
    assert home.ok("verify", pushed, "--key", anns, "--key", bens).out.count("signed by") == 2


def test_a_signature_is_of_one_version(home: Home, pushed: str, tmp_path: Path) -> None:
    key, public = Signer().write(tmp_path / "keys")
    home.ok("sign", pushed, "--key", key)
    name = pushed.partition(":")[0]
    home.ok("push", variant(tmp_path / "other", seed=3), name, "--base", "tiny")
    assert home.run("verify", f"{name}:v2", "--key", public).status == 7
    assert home.run("verify", name, "--key", public).status == 7
    twin = f"{fresh()}/queries"
    home.ok("push", QUERIES, twin, "--base", "tiny")
    assert home.json("show", twin)["digest"] == home.json("show", pushed)["digest"]
    assert home.run("verify", twin, "--key", public).status == 7


def test_the_passphrase_comes_from_the_environment(home: Home, pushed: str, tmp_path: Path) -> None:
    key, public = Signer().write(tmp_path / "keys", passphrase="open sesame")

    class Told(Home):
        phrase: str | None = None

        @property
        def environment(self) -> dict[str, str]:
            return super().environment | ({} if self.phrase is None else {PASSPHRASE: self.phrase})

    def given(phrase: str | None) -> Any:
        told = type("Told", (Told,), {"phrase": phrase})(home.folder, home.server)
        return told.run("sign", pushed, "--key", key)

    nobody = given(None)
    assert (nobody.status, PASSPHRASE in nobody.err) == (2, True)
    wrong = given("wrong")
    assert (wrong.status, "passphrase" in wrong.err, "wrong" in wrong.err) == (2, True, False)
    assert given("open sesame").status == 0
    home.ok("verify", pushed, "--key", public)


def test_what_is_signed_can_be_held_against_a_folder(home: Home, pushed: str, tmp_path: Path) -> None:
    key, public = Signer().write(tmp_path / "keys")
    refused = home.run("sign", pushed, "--key", key, "--dir", variant(tmp_path / "other", seed=5))
    assert (refused.status, "adapter_model.safetensors" in refused.err) == (7, True)
    lacking = home.run("sign", pushed, "--key", key, "--dir", tmp_path)
    assert (lacking.status, "not there" in lacking.err) == (7, True)
    assert home.run("verify", pushed, "--key", public).status == 7
    home.ok("sign", pushed, "--key", key, "--dir", QUERIES)
    home.ok("verify", pushed, "--key", public)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["sign", "a/b"], 2, "--key"),
        (["sign", "a/b", "--key", "nowhere.pem"], 1, "nowhere.pem"),
        (["sign", "a/b", "--key", "{public}"], 2, "not a private key"),
        (["sign", "a/b", "--key", "{secret}"], 3, "no repository"),
        (["verify", "a/b"], 2, "--key"),
        (["verify", "a/b", "--key", "{secret}"], 2, "private key; a public key is expected"),
        (["verify", "a/b", "--key", "{public}"], 3, "no repository"),
    ],
)
def test_what_goes_wrong_is_told(home: Home, tmp_path: Path, arguments: list[str], status: int, said: str) -> None:
    secret, public = Signer().write(tmp_path)
    refused = home.run(*(argument.format(secret=secret, public=public) for argument in arguments))
    assert (refused.status, said in refused.err) == (status, True), refused.err
    assert secret.read_text().splitlines()[1] not in refused.err


def test_without_cryptography_it_says_what_to_install(home: Home, pushed: str, tmp_path: Path) -> None:
    secret, public = Signer().write(tmp_path)
    for command, file in (("sign", secret), ("verify", public)):
        code = f"import sys; sys.modules['cryptography'] = None; from lora_reg.cli.main import run; sys.exit(run({[command, pushed, '--key', str(file)]!r}))"
        done = subprocess.run(
            [sys.executable, "-c", code], env=home.environment, cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, "extra `sign`" in done.stderr) == (2, True), done.stderr


# A registry that lies


def _change_payload(item: dict[str, Any]) -> None:
    data = bytearray(base64.b64decode(item["envelope"]["payload"]))
    data[30] ^= 1
    item["envelope"]["payload"] = base64.b64encode(bytes(data)).decode()


def _other_signer(item: dict[str, Any]) -> None:
    """A sound envelope by another key, shown under the id of the one that is asked for."""
    item["envelope"] = Signer().envelope(base64.b64decode(item["envelope"]["payload"]))


def _other_version(item: dict[str, Any]) -> None:
    """A statement about something else, shown with the digest that is asked for."""
    payload = base64.b64decode(item["envelope"]["payload"]).replace(b"queries", b"another")
    item["envelope"] = LIAR.envelope(payload)


LIAR = Signer()


@pytest.mark.parametrize(
    "lie",
    [
        _change_payload,
        _other_signer,
        _other_version,
        lambda item: item["envelope"]["signatures"][0].update(sig="AAAA"),
        lambda item: item["envelope"]["signatures"][0].update(sig="no base64"),
        lambda item: item["envelope"].update(payloadType="text/plain"),
    ],
    ids=["payload", "signer", "version", "signature", "base64", "payload-type"],
)
def test_a_lie_about_signatures_is_seen(
    registry: InProcess, home: Home, pushed: str, tmp_path: Path, lie: Callable[[dict[str, Any]], None]
) -> None:
    def harm(answer: Answer) -> None:
        if "/signatures" in answer.path:
            document = json.loads(answer.body)
            for item in document["items"]:
                lie(item)
            _say(answer, json.dumps(document).encode())

    key, public = LIAR.write(tmp_path / "keys")
    home.ok("sign", pushed, "--key", key)
    home.ok("verify", pushed, "--key", public)
    with Front(registry.url, harm=harm) as front:
        seen = Home(home.folder, front.url).run("verify", pushed, "--key", public)
    assert (seen.status, public.read_text() in seen.err) == (7, False), seen.err


def test_a_lie_about_the_manifest_is_seen(registry: InProcess, home: Home, pushed: str, tmp_path: Path) -> None:
    def harm(answer: Answer) -> None:
        if answer.path.endswith("/manifest"):
            _say(answer, answer.body.replace(b'"size":', b'"size": ', 1))

    key, public = Signer().write(tmp_path / "keys")
    home.ok("sign", pushed, "--key", key)
    with Front(registry.url, harm=harm) as front:
        there = Home(home.folder, front.url)
        for seen in (there.run("verify", pushed, "--key", public), there.run("sign", pushed, "--key", key)):
            assert (seen.status, "manifest" in seen.err) == (7, True), seen.err


def _say(answer: Answer, body: bytes) -> None:
    answer.body = body
    answer.headers.pop("content-length", None)
