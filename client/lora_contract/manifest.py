"""The manifest: the bytes whose digest is a version's identity.

A valid OCI image manifest with the media types of the CNCF ModelPack specification
(https://github.com/modelpack/model-spec/blob/main/docs/spec.md), in canonical form, so the same bytes are used by the
native, the Hub and the OCI dialect. Layers are the files, sorted by path; the path is the layer annotation
`org.cncf.model.filepath`. Our own facts are manifest annotations under `dev.lora-reg.`.

It excludes everything that may differ between two pushes of the same content: message, author, time, parents.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from lora_contract import canonical
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError

Kind = Literal["base", "adapter", "model", "dataset"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)

MEDIA_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
MEDIA_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"
MEDIA_WEIGHT: Final = "application/vnd.cncf.model.weight.v1.raw"
MEDIA_WEIGHT_CONFIG: Final = "application/vnd.cncf.model.weight.config.v1.raw"
MEDIA_DOC: Final = "application/vnd.cncf.model.doc.v1.raw"
MEDIA_DATASET: Final = "application/vnd.cncf.model.dataset.v1.raw"

FILEPATH: Final = "org.cncf.model.filepath"
A_KIND: Final = "dev.lora-reg.kind"
A_BASE: Final = "dev.lora-reg.base"
A_FINGERPRINT: Final = "dev.lora-reg.fingerprint"
A_RECIPE: Final = "dev.lora-reg.recipe"
A_WEIGHTS: Final = "dev.lora-reg.weights"

MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
MAX_FILES: Final = 4096
MAX_PATH: Final = 255
MAX_FILE_BYTES: Final = 1 << 48
_NOT_ON_WINDOWS: Final = frozenset('\\:*?"<>|')
_DEVICES: Final = frozenset({"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}) | {
    kind + digit for kind in ("COM", "LPT") for digit in "0123456789¹²³"
}


@dataclass(frozen=True, slots=True, order=True)
class FileEntry:
    """A file of a version. path: relative, with '/' between components. size: in bytes."""

    path: str
    size: int
    digest: Digest

    def __post_init__(self) -> None:
        check_path(self.path)
        if not 0 <= self.size <= MAX_FILE_BYTES:
            raise RegistryError("rejected", f"{self.path}: the size of {self.size} bytes is out of range.")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A version's content.

    Args:
        files: sorted by unique paths.
        base: digest of the base version (adapters and models).
        fingerprint: digest of the base fingerprint (bases only).
        recipe: digest of the recipe that derived this version; None if it was pushed.
        weights_absent: a base registered with `--manifest-only` before 2026-12, which had a digest of its own. Whether
            the weights are stored is no longer part of a version's content.
        config: ModelPack's technical metadata: `architecture`, `format`, `paramSize`, `precision`, `quantization`.
    """

    kind: Kind
    files: tuple[FileEntry, ...]
    base: Digest | None = None
    fingerprint: Digest | None = None
    recipe: Digest | None = None
    weights_absent: bool = False
    config: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        paths = [entry.path for entry in self.files]
        if paths != sorted(set(paths)):
            raise RegistryError("rejected", "The files of a manifest must be sorted by path, and paths must be unique.")
        folded = {path.casefold() for path in paths}
        if len(folded) != len(paths):
            raise RegistryError(
                "rejected", "Two paths of the manifest differ only in case; some file systems merge them."
            )
        if not 0 < len(paths) <= MAX_FILES:
            raise RegistryError("rejected", f"A version has 1 to {MAX_FILES} files, not {len(paths)}.")

    def config_bytes(self) -> bytes:
        """The ModelPack configuration object that the manifest's `config` descriptor refers to."""
        return canonical.dumps(
            {
                "config": self.config,
                "descriptor": {},
                "modelfs": {"diffIds": [str(entry.digest) for entry in self.files], "type": "layers"},
            }
        )

    def to_bytes(self) -> bytes:
        """The canonical bytes; `digest` is their SHA-256."""
        config = self.config_bytes()
        annotations: dict[str, str] = {A_KIND: self.kind}
        for key, digest in ((A_BASE, self.base), (A_FINGERPRINT, self.fingerprint), (A_RECIPE, self.recipe)):
            if digest is not None:
                annotations[key] = str(digest)
        if self.weights_absent:
            annotations[A_WEIGHTS] = "absent"
        return canonical.dumps(
            {
                "annotations": annotations,
                "artifactType": ARTIFACT_TYPE,
                "config": {"digest": str(Digest.of(config)), "mediaType": MEDIA_CONFIG, "size": len(config)},
                "layers": [
                    {
                        "annotations": {FILEPATH: entry.path},
                        "digest": str(entry.digest),
                        "mediaType": media_type(entry.path, self.kind),
                        "size": entry.size,
                    }
                    for entry in self.files
                ],
                "mediaType": MEDIA_MANIFEST,
                "schemaVersion": 2,
            }
        )

    @property
    def digest(self) -> Digest:
        return Digest.of(self.to_bytes())

    def file(self, path: str) -> FileEntry | None:
        return next((entry for entry in self.files if entry.path == path), None)


def parse(data: bytes, config: bytes | None = None) -> Manifest:
    """Parse manifest bytes, which must equal the output of `to_bytes`.

    config: the bytes of the configuration object. Without them `Manifest.config` stays empty, and the config
    descriptor is not checked. Raises RegistryError `rejected`.
    """
    document = canonical.loads_strict(data, what="The manifest", max_bytes=MAX_MANIFEST_BYTES)
    try:
        annotations: dict[str, Any] = document["annotations"]
        kind = annotations[A_KIND]
        if kind not in KINDS:
            raise RegistryError("rejected", f"The manifest's kind is {kind!r}; expected one of {', '.join(KINDS)}.")
        files = tuple(
            FileEntry(layer["annotations"][FILEPATH], _size(layer["size"]), Digest.parse(layer["digest"]))
            for layer in document["layers"]
        )
        manifest = Manifest(
            kind=kind,
            files=files,
            base=_optional(annotations, A_BASE),
            fingerprint=_optional(annotations, A_FINGERPRINT),
            recipe=_optional(annotations, A_RECIPE),
            weights_absent=annotations.get(A_WEIGHTS) == "absent",
            config=_config(config),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise RegistryError(
            "rejected", f"The manifest has a missing field or one of the wrong type: {error!r}."
        ) from error
    if config is not None and manifest.to_bytes() != data:
        raise RegistryError(
            "rejected", "The manifest is not in canonical form; send the bytes as the client writes them."
        )
    return manifest


def check_path(path: str) -> str:
    """Check that a path is allowed in a manifest and can be written inside a folder. Raises RegistryError `rejected`.

    Refused: absolute, empty, '.', '..', control characters, hidden components, text that is not NFC, more than 255
    bytes; and what Windows cannot hold: backslash and other characters, names of devices, trailing dots or spaces.
    """

    def bad(why: str) -> RegistryError:
        return RegistryError("rejected", f"The path {path[:120]!r} {why}.", hint="Rename the file and push again.")

    if not isinstance(path, str) or not path or len(path.encode("utf-8", "surrogatepass")) > MAX_PATH:
        raise bad(f"is empty or longer than {MAX_PATH} bytes")
    if unicodedata.normalize("NFC", path) != path:
        raise bad("is not in Unicode's composed form (NFC)")
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for character in path):
        raise bad("contains a control or formatting character")
    if found := _NOT_ON_WINDOWS.intersection(path):
        raise bad(f"contains {min(found)!r}, which Windows does not allow in names")
    for part in path.split("/"):
        if part in ("", ".", ".."):
            raise bad("is absolute, or has an empty component, '.' or '..'")
        if part.startswith("."):
            raise bad("has a hidden component")
        if part != part.strip() or part.endswith("."):
            raise bad("has a component that begins or ends with white space or ends with a dot")
        if part.partition(".")[0].rstrip(" ").upper() in _DEVICES:
            raise bad(f"has the component {part[:40]!r}, which is a device on Windows")
    return path


def media_type(path: str, kind: str) -> str:
    """The ModelPack media type of a file, by its suffix."""
    lower = path.lower()
    if kind == "dataset":
        return MEDIA_DATASET
    if lower.endswith((".safetensors", ".gguf")):
        return MEDIA_WEIGHT
    if lower.endswith((".md", ".txt")) and "/" not in lower and not lower.startswith("vocab"):
        return MEDIA_DOC
    return MEDIA_WEIGHT_CONFIG


def _optional(annotations: dict[str, Any], key: str) -> Digest | None:
    value = annotations.get(key)
    return None if value is None else Digest.parse(value)


def _size(value: Any) -> int:
    if type(value) is not int:
        raise RegistryError("rejected", f"A layer's size is {value!r}; expected a whole number of bytes.")
    return value


def _config(config: bytes | None) -> dict[str, str]:
    if config is None:
        return {}
    document = canonical.loads_strict(config, what="The manifest's config", max_bytes=MAX_MANIFEST_BYTES)
    values = document["config"]
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise RegistryError("rejected", "The manifest's config must hold strings only.")
    return values
