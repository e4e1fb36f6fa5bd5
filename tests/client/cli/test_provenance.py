"""Provenance of a derived version, read by in-toto's own libraries, and from a registry that lies."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_contract.digest import Digest
from tests.support.command import TINY, Home, fresh
from tests.support.front import Answer, Front
from tests.support.service import InProcess
from tests.support.signing import Signer, model_signing_programs

pytestmark = pytest.mark.worker

READ = """
import json, sys
from google.protobuf.json_format import Parse, ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as Message
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

envelope = Envelope.from_dict(json.load(open(sys.argv[1])))
key = SSlibKey.from_crypto(load_pem_public_key(open(sys.argv[2], "rb").read()))
key.keyid = next(iter(envelope.signatures))
envelope.verify([key], 1)
statement = Parse(envelope.payload, Message())
Statement.copy_from_pb(statement).validate()
predicate = json.loads(envelope.payload)["predicate"]
found = ParseDict(predicate, Provenance())  # refuses fields that SLSA does not have
print(found.build_definition.build_type, len(found.build_definition.resolved_dependencies))
"""


@pytest.fixture
def derived(home: Home) -> str:
    name = f"{fresh()}/logs"
    home.ok("push", TINY / "adapters" / "logs", "--base", "tiny", name)
    home.ok("resize", name, "--rank", "2", "--to", f"{name}-small")
    return f"{name}-small:v1"


def test_provenance_names_what_a_version_was_made_of(home: Home, derived: str, tmp_path: Path) -> None:
    view = home.json("show", derived)
    statement = home.ok("provenance", derived).document
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    version, *files = statement["subject"]
    name = derived.partition(":")[0]
    assert version == {"name": name, "digest": {"sha256": view["digest"].removeprefix("sha256:")}}
    assert [(one["name"], "sha256:" + one["digest"]["sha256"]) for one in files] == [
        (file["path"], file["digest"]) for file in view["files"]
    ]
    definition = statement["predicate"]["buildDefinition"]
    assert {**definition["externalParameters"]["recipe"], "digest": view["recipe"]["digest"]} == view["recipe"]
    base, adapter = definition["resolvedDependencies"]
    assert (base["name"], base["annotations"]) == ("default/tiny:v1", {"role": "base"})
    assert adapter["name"] == f"{name.removesuffix('-small')}:v1"
    assert "sha256:" + adapter["digest"]["sha256"] == view["recipe"]["adapter"]
    details = statement["predicate"]["runDetails"]
    assert details["metadata"]["finishedOn"] == view["created_at"]
    assert home.json("job", "show", details["metadata"]["invocationId"])["result"]["number"] == 1
    # Signed, it is what in-toto and SLSA say it is.
    key, public = Signer(curve=True).write(tmp_path / "keys")
    signed = tmp_path / "small.intoto.json"
    assert home.ok("provenance", derived, "--key", key, "-o", signed, "-q").out == f"{signed}\n"
    python = model_signing_programs() / "python"
    read = subprocess.run([python, "-c", READ, signed, public], capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    assert read.stdout.split() == ["urn:lora-reg:operation:resize:1", "2"]
    _, others = Signer(curve=True).write(tmp_path / "others")
    assert subprocess.run([python, "-c", READ, signed, others], capture_output=True, check=False).returncode


def test_what_was_pushed_has_no_provenance(home: Home, derived: str) -> None:
    refused = home.run("provenance", f"{derived.partition(':')[0].removesuffix('-small')}:v1")
    assert (refused.status, "was pushed" in refused.err) == (3, True), refused.err


def _recipe(statement: dict[str, Any]) -> None:
    statement["predicate"]["buildDefinition"]["externalParameters"]["recipe"]["rank"] = 4


def _input(statement: dict[str, Any]) -> None:
    statement["predicate"]["buildDefinition"]["resolvedDependencies"][1]["digest"]["sha256"] = Digest.of(b"x").hex


def _file(statement: dict[str, Any]) -> None:
    statement["subject"][1]["digest"]["sha256"] = Digest.of(b"x").hex


def _version(statement: dict[str, Any]) -> None:
    statement["subject"][0]["digest"]["sha256"] = Digest.of(b"x").hex


def _nothing(statement: dict[str, Any]) -> None:
    statement.clear()


def test_a_lie_is_neither_printed_nor_signed(registry: InProcess, home: Home, derived: str, tmp_path: Path) -> None:
    key, _ = Signer().write(tmp_path / "keys")
    for lie in (_recipe, _input, _file, _version, _nothing):

        def harm(answer: Answer, lie: Callable[[dict[str, Any]], None] = lie) -> None:
            if answer.path.endswith("/provenance"):
                statement = json.loads(answer.body)
                lie(statement)
                answer.body = json.dumps(statement).encode()
                answer.headers.pop("content-length", None)

        with Front(registry.url, harm=harm) as front:
            seen = Home(home.folder, front.url).run("provenance", derived, "--key", key)
        assert (seen.status, seen.out) == (7, ""), (lie, seen.err)
