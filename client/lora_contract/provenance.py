"""Provenance of derived versions: in-toto statements with the predicate SLSA Provenance v1 (https://slsa.dev/provenance).

The subjects are the version, by the digest of its manifest, and each of its files. The recipe is the external
parameters: its canonical bytes have the digest that the manifest names, so that a reader can check it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lora_contract import canonical, decoding
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.manifest import MAX_MANIFEST_BYTES, Manifest
from lora_contract.recipe import parse_recipe, sources
from lora_contract.signing.statement import STATEMENT_TYPE

PROVENANCE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILDER: Final = "urn:lora-reg:worker"
_MAX_BYTES: Final = 2 * MAX_MANIFEST_BYTES


def make_provenance(
    name: str,
    digest: Digest,
    manifest: Manifest,
    recipe: bytes,
    *,
    names: Mapping[str, str],
    job_id: str | None,
    finished: str,
) -> bytes:
    """Make the statement, in canonical JSON.

    Args:
        name, digest: `namespace/name` and digest of the version.
        names: of inputs, by digest; the others appear by digest alone.
        job_id: of the job that derived it.
        finished: when it was committed (RFC 3339).
    """
    parsed = parse_recipe(recipe)
    metadata = {"finishedOn": finished, **({"invocationId": job_id} if job_id else {})}
    files = [{"name": entry.path, "digest": {"sha256": entry.digest.hex}} for entry in manifest.files]
    return canonical.dumps(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": digest.hex}}, *files],
            "predicateType": PROVENANCE_TYPE,
            "predicate": {
                "buildDefinition": {
                    "buildType": f"urn:lora-reg:operation:{parsed.operation}:{parsed.operation_version}",
                    "externalParameters": {"recipe": decoding.decode(recipe, Any)},
                    "resolvedDependencies": [
                        {
                            "digest": {"sha256": Digest.parse(needed).hex},
                            "annotations": {"role": role},
                            **({"name": names[needed]} if needed in names else {}),
                        }
                        for role, needed in _dependencies(recipe)
                    ],
                },
                "runDetails": {"builder": {"id": BUILDER}, "metadata": metadata},
            },
        }
    )


def check_provenance(statement: bytes, digest: Digest, manifest: Manifest) -> None:
    """Check a statement against a manifest: subjects, recipe and inputs. Names and times cannot be checked.

    Raises RegistryError `digest-mismatch` if it is about something else, or malformed.
    """
    try:
        document: Any = canonical.loads_strict(statement, what="The provenance", max_bytes=_MAX_BYTES)
        definition = document["predicate"]["buildDefinition"]
        recipe = canonical.dumps(definition["externalParameters"]["recipe"])
        subjects = [subject["digest"]["sha256"] for subject in document["subject"]]
        inputs = [dependency["digest"]["sha256"] for dependency in definition["resolvedDependencies"]]
        found = (document["_type"], document["predicateType"], subjects, Digest.of(recipe), inputs)
        expected_inputs = [Digest.parse(text).hex for _, text in _dependencies(recipe)]
    except (KeyError, TypeError, RegistryError) as error:
        raise RegistryError("digest-mismatch", f"The provenance is malformed: {error!r}.") from error
    files = [entry.digest.hex for entry in manifest.files]
    if found != (STATEMENT_TYPE, PROVENANCE_TYPE, [digest.hex, *files], manifest.recipe, expected_inputs):
        raise RegistryError(
            "digest-mismatch",
            f"The provenance does not describe the version {digest.short}: its subjects or its recipe differ.",
            hint="Do not rely on it; ask an administrator of the registry.",
        )


def _dependencies(recipe: bytes) -> list[tuple[str, str]]:
    return [("base", parse_recipe(recipe).base), *(("input", digest) for digest in sources(recipe))]
