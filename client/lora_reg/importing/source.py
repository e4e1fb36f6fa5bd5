"""Parse SOURCE of `lora-reg import` and open it.

hf://ORG/NAME[@REVISION]     a repository of a Hub
hf://ORG[?base=ORG/NAME]     those of an organisation or user, or of these the adapters of a base
hf://?base=ORG/NAME          all adapters of a base
s3://BUCKET[/PREFIX]         the folders below a prefix that hold an adapter
mlflow:[NAME]                a registered model of an MLflow server, or all of them
DIR, FILE.safetensors        a folder with an adapter, or of folders with adapters; a LoRA file
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from lora_contract.errors import RegistryError
from lora_reg.importing import hub, mlflow
from lora_reg.importing.folders import FolderSource
from lora_reg.importing.hub_source import HubSource
from lora_reg.importing.items import Source
from lora_reg.importing.s3 import BucketSource

_FORMS: Final = "hf://ORG/NAME[@REVISION], hf://ORG, s3://BUCKET/PREFIX, mlflow:[NAME] or a folder"


def open_source(text: str, *, endpoint: str | None = None, token_file: str | None = None) -> Source:
    """Open a source. endpoint: URL of the Hub, the S3 server or the MLflow server. Raises RegistryError `usage`."""
    if text.startswith("hf://"):
        return _hub(text, endpoint, token_file)
    if token_file is not None:
        raise RegistryError("usage", "--source-token-file is for hf:// sources.", hint="Leave it out.")
    if text.startswith("s3://"):
        parts = urlsplit(text)
        if not parts.netloc or parts.query or parts.fragment:
            raise _not_a_source(text)
        return BucketSource(parts.netloc, parts.path, endpoint)
    if text.startswith("mlflow:"):
        return mlflow.connect(endpoint, text.removeprefix("mlflow:").strip("/") or None)
    if text.startswith("wandb:"):
        raise RegistryError(
            "usage",
            "Artifacts of Weights & Biases are not imported directly.",
            hint="Fetch them with `wandb artifact get ENTITY/PROJECT/NAME:VERSION --root DIR`, and import DIR.",
        )
    path = Path(text)
    if "://" in text or not (path.is_dir() or (path.is_file() and path.suffix == ".safetensors")):
        raise _not_a_source(text)
    return FolderSource(path)


def parse_repository(text: str) -> tuple[str, str | None]:
    """The id and the revision of `hf://ORG/NAME[@REVISION]`. Raises RegistryError `usage`."""
    repo, at, revision = text.removeprefix("hf://").partition("@")
    if at and not revision:
        raise _not_a_source(text)
    return hub.check_id(repo.strip("/")), revision or None


def _hub(text: str, endpoint: str | None, token_file: str | None) -> Source:
    body, _, query = text.removeprefix("hf://").partition("?")
    options = parse_qs(query, keep_blank_values=True)
    base = options.pop("base", [None])[0]
    if options or (not body and not base):
        raise _not_a_source(text)
    if "/" in body.strip("/"):
        if base:
            raise RegistryError("usage", f"{text[:200]!r} names one repository and a base.", hint="Leave ?base= out.")
        repo, revision = parse_repository(f"hf://{body}")
        return HubSource(hub.connect(endpoint, token_file), repository=repo, revision=revision)
    author = hub.check_id(body.strip("/")) if body else None
    return HubSource(hub.connect(endpoint, token_file), author=author, base=hub.check_id(base) if base else None)


def _not_a_source(text: str) -> RegistryError:
    return RegistryError("usage", f"{text[:200]!r} is not a source of adapters; expected {_FORMS}.", hint="See --help.")
