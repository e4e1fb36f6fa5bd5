"""Statements of provenance: what they say, and that nothing else passes for one."""

from __future__ import annotations

import json

import pytest

from lora_contract import canonical
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.manifest import FileEntry, Manifest
from lora_contract.provenance import check_provenance, make_provenance
from lora_contract.recipe import MergeRecipe, RecipeInput

BASE, ONE, TWO = (str(Digest(character * 64)) for character in "abc")
RECIPE = MergeRecipe(
    operation_version=1,
    base=BASE,
    target="acme/both",
    inputs=(RecipeInput(ONE, 0.1), RecipeInput(TWO, 1e-7)),
    dtype="bfloat16",
)
MANIFEST = Manifest("model", (FileEntry("model.safetensors", 5, Digest("d" * 64)),), recipe=RECIPE.digest)


def made(names: dict[str, str]) -> bytes:
    return make_provenance(
        "acme/both",
        MANIFEST.digest,
        MANIFEST,
        RECIPE.to_bytes(),
        names=names,
        job_id="merge-1",
        finished="2026-11-30T12:00:00Z",
    )


def test_inputs_are_named_if_their_names_are_known() -> None:
    statement = made({ONE: "acme/one:v3"})
    check_provenance(statement, MANIFEST.digest, MANIFEST)
    dependencies = json.loads(statement)["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [dependency.get("name") for dependency in dependencies] == [None, "acme/one:v3", None]
    assert ["sha256:" + dependency["digest"]["sha256"] for dependency in dependencies] == [BASE, ONE, TWO]


@pytest.mark.parametrize(
    "harm",
    [
        lambda document: document.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda document: document.update(predicateType="https://slsa.dev/provenance/v0.2"),
        lambda document: document.update(subject=[]),
        lambda document: document["subject"].append(document["subject"][0]),
        lambda document: document["predicate"].pop("buildDefinition"),
        lambda document: document["predicate"]["buildDefinition"]["externalParameters"]["recipe"].update(seed=9),
        lambda document: document["predicate"]["buildDefinition"]["externalParameters"].update(recipe={}),
        lambda document: document["predicate"]["buildDefinition"]["resolvedDependencies"].pop(),
    ],
)
def test_what_differs_from_the_manifest_is_refused(harm) -> None:
    document = json.loads(made({}))
    harm(document)
    with pytest.raises(RegistryError) as caught:
        check_provenance(canonical.dumps(document), MANIFEST.digest, MANIFEST)
    assert caught.value.code == "digest-mismatch"


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"\xff", b'"x"'])
def test_what_is_no_statement_is_refused(data: bytes) -> None:
    with pytest.raises(RegistryError) as caught:
        check_provenance(data, MANIFEST.digest, MANIFEST)
    assert caught.value.code == "digest-mismatch"
