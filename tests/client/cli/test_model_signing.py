"""Signatures that OpenSSF's own program verifies, and signatures that it makes."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.command import TINY, Home, fresh, variant
from tests.support.signing import Signer, model_signing_programs

QUERIES = TINY / "adapters" / "queries-v1"


@pytest.fixture(scope="session")
def program() -> Path:
    return model_signing_programs() / "model_signing"


@pytest.fixture
def pushed(home: Home) -> str:
    name = f"{fresh()}/queries"
    home.ok("push", QUERIES, name, "--base", "tiny")
    return f"{name}:v1"


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_model_signing_accepts_what_is_exported(home: Home, pushed: str, program: Path, tmp_path: Path) -> None:
    key, public = Signer(curve=True).write(tmp_path / "keys")
    folder, bundle = tmp_path / "pulled", tmp_path / "model.sig"
    home.ok("sign", pushed, "--key", key)
    assert home.run("signature", "export", pushed, "--key", public, "-o", bundle).status == 7
    signed = home.json("sign", pushed, "--key", key, "--format", "model-signing")
    assert signed["format"] == "model-signing"
    home.ok("signature", "export", pushed, "--key", public, "-o", bundle)
    home.ok("pull", pushed, "-o", folder)
    checked = run(program, "verify", "key", folder, "--signature", bundle, "--public_key", public)
    assert checked.returncode == 0, checked.stderr + checked.stdout
    _, others = Signer(curve=True).write(tmp_path / "others")
    assert run(program, "verify", "key", folder, "--signature", bundle, "--public_key", others).returncode
    (folder / "README.md").write_text("more")
    assert run(program, "verify", "key", folder, "--signature", bundle, "--public_key", public).returncode
    shown = home.json("show", pushed)["signatures"]
    assert [one["format"] for one in shown] == ["lora-reg", "model-signing"]


def test_what_model_signing_made_is_imported(home: Home, pushed: str, program: Path, tmp_path: Path) -> None:
    key, public = Signer(curve=True).write(tmp_path / "keys")
    folder = tmp_path / "pulled"
    home.ok("pull", pushed, "-o", folder)
    bundle = folder / "model.sig"
    made = run(program, "sign", "key", folder, "--signature", bundle, "--private_key", key)
    assert made.returncode == 0, made.stderr
    home.ok("signature", "import", pushed, bundle, "--key", public)
    home.ok("verify", pushed, "--key", public, "--format", "model-signing")
    # It covers neither the base nor the name, so that it does not stand for our own statement.
    assert home.run("verify", pushed, "--key", public).status == 7
    back = tmp_path / "back.sig"
    home.ok("signature", "export", pushed, "--key", public, "-o", back)
    checked = run(program, "verify", "key", folder, "--signature", bundle, "--public_key", public)
    assert checked.returncode == 0, checked.stderr
    assert json.loads(back.read_bytes())["dsseEnvelope"]["payload"] == payload_of(bundle)
    # A signature is no file of a version: who signs a folder before it is pushed leaves it out.
    name = pushed.partition(":")[0]
    refused = home.run("push", folder, name, "--base", "tiny")
    assert (refused.status, "signature import" in refused.err) == (6, True), refused.err
    bundle.unlink()
    assert home.json("push", folder, name, "--base", "tiny")["version"]["number"] == 1


def payload_of(bundle: Path) -> str:
    payload: str = json.loads(bundle.read_bytes())["dsseEnvelope"]["payload"]
    return payload


def bundle_of(signer: Signer, folder: Path, change: Any = None) -> bytes:
    """A bundle as the format's page describes it, of a folder's files."""
    names = sorted(path.name for path in folder.iterdir())
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    statement: dict[str, Any] = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "x", "digest": {}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []},
            "resources": [{"name": name, "algorithm": "sha256", "digest": digests[name]} for name in names],
        },
    }
    if change is not None:
        change(statement["predicate"])
    root = b"".join(bytes.fromhex(resource["digest"]) for resource in statement["predicate"]["resources"])
    statement["subject"][0]["digest"] = {"sha256": hashlib.sha256(root).hexdigest()}
    if change is _wrong_root:
        statement["subject"][0]["digest"] = {"sha256": "00" * 32}
    return json.dumps(
        {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": "no matter"}, "tlogEntries": []},
            "dsseEnvelope": signer.envelope(json.dumps(statement).encode()),
        }
    ).encode()


def _wrong_root(predicate: dict[str, Any]) -> None:
    pass


def _ignored_weights(predicate: dict[str, Any]) -> None:
    """The signer vouches for the config alone, and says so: that is no signature of the version."""
    predicate["resources"] = [item for item in predicate["resources"] if "safetensors" not in item["name"]]
    predicate["serialization"]["ignore_paths"] = ["adapter_model.safetensors"]


def _twice(predicate: dict[str, Any]) -> None:
    predicate["resources"].append(predicate["resources"][0])


def _shards(predicate: dict[str, Any]) -> None:
    predicate["serialization"] = {"method": "shards", "shard_size": 1, "hash_type": "sha256", "allow_symlinks": False}


def _more(predicate: dict[str, Any]) -> None:
    predicate["resources"].append({"name": "more.txt", "algorithm": "sha256", "digest": "ab" * 32})


def _algorithm(predicate: dict[str, Any]) -> None:
    predicate["resources"][0]["algorithm"] = "blake3"


@pytest.mark.parametrize(
    ("change", "status"),
    [(None, 0), (_wrong_root, 2), (_ignored_weights, 7), (_twice, 2), (_shards, 2), (_more, 7), (_algorithm, 2)],
    ids=["good", "root", "ignored", "twice", "shards", "more", "algorithm"],
)
def test_only_a_bundle_of_exactly_these_files_is_imported(
    home: Home, pushed: str, tmp_path: Path, change: Any, status: int
) -> None:
    signer = Signer(curve=True)
    _, public = signer.write(tmp_path / "keys")
    bundle = tmp_path / "model.sig"
    bundle.write_bytes(bundle_of(signer, QUERIES, change))
    seen = home.run("signature", "import", pushed, bundle, "--key", public)
    assert seen.status == status, seen.err
    # The registry decides by itself: the same from a client that checks nothing.
    document = json.loads(bundle.read_bytes())
    body = {"envelope": document["dsseEnvelope"], "key": signer.pem}
    name = pushed.partition(":")[0]
    answer = httpx.post(f"{home.server}/api/v1/repositories/{name}/versions/v1/signatures", json=body)
    assert answer.status_code == {0: 200, 2: 400, 7: 422}[status], answer.text


def test_a_bundle_of_another_version_or_key_is_refused(home: Home, pushed: str, tmp_path: Path) -> None:
    signer = Signer(curve=True)
    _, public = signer.write(tmp_path / "keys")
    _, others = Signer(curve=True).write(tmp_path / "others")
    bundle = tmp_path / "model.sig"
    bundle.write_bytes(bundle_of(signer, variant(tmp_path / "variant", seed=4)))
    seen = home.run("signature", "import", pushed, bundle, "--key", public)
    assert (seen.status, "adapter_model.safetensors" in seen.err) == (7, True)
    bundle.write_bytes(bundle_of(signer, QUERIES))
    assert home.run("signature", "import", pushed, bundle, "--key", others).status == 7
    ed = Signer()
    secret, edpub = ed.write(tmp_path / "ed")
    bundle.write_bytes(bundle_of(ed, QUERIES))
    for seen in (
        home.run("signature", "import", pushed, bundle, "--key", edpub),
        home.run("sign", pushed, "--key", secret, "--format", "model-signing"),
    ):
        assert (seen.status, "P-256" in seen.err) == (2, True), seen.err
    assert home.json("show", pushed)["signatures"] == []


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"certificate":{}}}',
        b"[" * 3000,
        b"A" * 300_000,
    ],
)
def test_what_is_no_bundle_is_refused(home: Home, pushed: str, tmp_path: Path, text: bytes) -> None:
    _, public = Signer(curve=True).write(tmp_path / "keys")
    (tmp_path / "model.sig").write_bytes(text)
    seen = home.run("signature", "import", pushed, tmp_path / "model.sig", "--key", public)
    assert (seen.status, "model.sig" in seen.err) == (2, True), seen.err


def test_our_own_signature_goes_through_a_file(home: Home, pushed: str, tmp_path: Path) -> None:
    """From one registry to another, or to a program that knows DSSE."""
    key, public = Signer().write(tmp_path / "keys")
    home.ok("sign", pushed, "--key", key)
    home.ok("signature", "export", pushed, "--key", public, "--format", "lora-reg", "-o", tmp_path / "signed.json")
    document = json.loads((tmp_path / "signed.json").read_bytes())
    statement = json.loads(base64.b64decode(document["payload"]))
    assert statement["predicateType"] == "urn:lora-reg:version-signature:1"
    again = home.json("signature", "import", pushed, tmp_path / "signed.json", "--key", public)
    assert again["key_id"] == home.json("show", pushed)["signatures"][0]["key_id"]
    shutil.rmtree(tmp_path / "keys")
