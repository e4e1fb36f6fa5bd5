"""Find the registered base that a model was loaded from: by its name, or else by the content of its files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lora_contract.errors import RegistryError
from lora_contract.wire.repositories import RepositoryView, VersionView
from lora_reg.client import Client

_WEIGHTS = ".safetensors"


@dataclass(frozen=True, slots=True)
class FoundBase:
    """by_content: its files are the same, whatever its names are."""

    reference: str
    by_content: bool = False


def find_base(client: Client, name: str) -> FoundBase:
    """Return the base that `name` means: what a trainer passed to `from_pretrained`.

    Raises RegistryError `not-found` if no base has this name, alias or content, `conflict` if several have the alias.
    """
    bases = list(client.repositories(kind="base"))
    if found := _by_name(client, bases, name):
        return FoundBase(found)
    folder = local_folder(name)
    if folder is not None and (found := _by_content(client, bases, folder)):
        return FoundBase(found, by_content=True)
    raise RegistryError(
        "not-found",
        f"No registered base has the name, the alias or the content of {name[:200]!r}.",
        hint=f"Register it with `lora-reg base add NAME {folder or 'DIR'} --alias {name[:200]}`, or name one: base=...",
    )


def local_folder(name: str) -> Path | None:
    """Return the folder of a model: `name` itself, or its snapshot in the cache of huggingface_hub."""
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    try:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json")
    except (ImportError, ValueError):  # it is no id of the Hub
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _by_name(client: Client, bases: list[RepositoryView], name: str) -> str | None:
    wanted = name.lower()
    own = [base for base in bases if wanted == f"{base.namespace}/{base.name}".lower()]
    named = own or [base for base in bases if wanted == base.name.lower() and base.namespace == client.namespace]
    found = named or list(client.bases_with_alias(name))
    digests = {base.latest.digest for base in found if base.latest is not None}
    if len(digests) > 1:
        raise RegistryError(
            "conflict",
            f"{name!r} is an alias of several bases: {', '.join(f'{base.namespace}/{base.name}' for base in found)}.",
            hint="Name the one that you mean: base=...",
        )
    base = next((base for base in found if base.latest is not None), None)
    return None if base is None or base.latest is None else f"{base.namespace}/{base.name}@{base.latest.digest}"


def _by_content(client: Client, bases: list[RepositoryView], folder: Path) -> str | None:
    """Weights are hashed only if a base has files of the same names and sizes."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    digests: dict[str, str] = {}
    for base in bases:
        if base.latest is None:
            continue
        reference = f"{base.namespace}/{base.name}@{base.latest.digest}"
        if _same(client.version(reference), folder, sizes, digests):
            return reference
    return None


def _same(version: VersionView, folder: Path, sizes: dict[str, int], digests: dict[str, str]) -> bool:
    files = [file for file in version.files if file.path.endswith(_WEIGHTS) or file.path == "config.json"]
    if not files or any(sizes.get(file.path) != file.size for file in files):
        return False
    for file in sorted(files, key=lambda file: file.size):
        if file.path not in digests:
            with (folder / file.path).open("rb") as stream:
                digests[file.path] = f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
        if digests[file.path] != file.digest:
            return False
    return True
