"""The base of an adapter: look up the one that is given, or the one that the adapter's config names."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lora_contract import canonical, reference
from lora_contract.adapter.check import is_local_path
from lora_contract.adapter.config import MAX_CONFIG_BYTES
from lora_contract.adapter.report import CONFIG, WEIGHTS
from lora_contract.base import BaseFingerprint, BaseTensor, parse_fingerprint
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.reference import Reference
from lora_contract.wire.repositories import VersionView
from lora_reg.client import Client
from lora_reg.transfer.hub_cache import snapshot_of
from lora_reg.transfer.scan import Scan

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z", re.ASCII)
_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class ResolvedBase:
    """A base and its fingerprint. names: its name and aliases. named: what the config calls it, if that chose it."""

    view: VersionView
    fingerprint: BaseFingerprint
    names: frozenset[str]
    named: str | None = None

    @property
    def reference(self) -> str:
        return f"{self.view.namespace}/{self.view.name}@{self.view.digest}"


def pin_base(client: Client, base: str, named: str | None = None) -> ResolvedBase:
    """Look up a base and its fingerprint. Raises `not-found`, `conflict` if it is not a base, `digest-mismatch`."""
    try:
        view = client.version(base)
        repository = client.repository(base)
    except RegistryError as error:
        if error.code != "not-found":
            raise
        raise RegistryError(
            "not-found",
            error.detail,
            hint="See `lora-reg base list`; register it with `lora-reg base add NAME DIR`.",
        ) from error
    if view.kind != "base":
        raise RegistryError(
            "conflict",
            f"{view.namespace}/{view.name} is of kind {view.kind}, not base.",
            hint="See `lora-reg base list`.",
        )
    raw = client.fingerprint(f"{view.namespace}/{view.name}@{view.digest}")
    stated = (view.facts or {}).get("fingerprint")
    if stated is not None and str(Digest.of(raw)) != stated:
        raise RegistryError(
            "digest-mismatch", f"The fingerprint of {view.namespace}/{view.name} differs from its digest."
        )
    names = {*repository.aliases, view.name, f"{view.namespace}/{view.name}"}
    if view.base is not None:  # a resized base: trainers resize in memory, and name the one that they loaded
        origin = client.repository(f"{view.base.namespace}/{view.base.name}")
        names |= {*origin.aliases, origin.name, f"{origin.namespace}/{origin.name}"}
    return ResolvedBase(view, parse_fingerprint(raw), frozenset(names), named)


def named_base(client: Client, scan: Scan, namespace: str | None) -> ResolvedBase:
    """Look up the base that the adapter's config names: a registered base of this name, or one with this alias.

    Raises RegistryError `usage` if the config names none, `not-found` with the command that would register it, and
    `conflict` if several bases with different content have the alias. namespace: that of the adapter, looked at first.
    """
    named = _name_in_config(scan)
    found = find_base(client, named, namespace)
    if found is None:
        command = _registration(scan, named)
        raise RegistryError(
            "not-found",
            f"{CONFIG} names the base {named[:200]!r}, which is not registered.",
            hint=f"Register it: `{command}`; or name a registered one with `--base`, see `lora-reg base list`.",
            command=command,
        )
    return pin_base(client, found, named)


def find_base(client: Client, named: str, namespace: str | None) -> str | None:
    """The registered base with this name, or else with this alias; None if there is none.

    Raises `conflict` for several. namespace: of the adapter, looked at before others.
    """
    return _by_name(client, named, namespace) or _by_alias(client, named, namespace)


def base_reader(client: Client, pinned: ResolvedBase) -> Any:
    """A function that reads bytes of a base tensor from the registry; None if it has no weights of the base."""
    if pinned.view.weights_absent:
        return None

    def read(tensor: BaseTensor, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        start = tensor.start + offset
        with client.file(pinned.reference, tensor.file, start=start, end=start + length) as response:
            data = response.read()
        if len(data) != length:
            raise RegistryError(
                "size-mismatch", f"{tensor.file} of the base: received {len(data)} bytes; expected {length}."
            )
        return data

    return read


def _name_in_config(scan: Scan) -> str:
    file = next((file for file in scan.files if file.path == CONFIG), None)
    if file is None:
        raise RegistryError(
            "rejected",
            f"{scan.folder} has no {CONFIG}; an adapter consists of {CONFIG} and {WEIGHTS}.",
            hint="Save the adapter with PEFT's save_pretrained and push that folder.",
        )
    if file.size > MAX_CONFIG_BYTES:
        raise RegistryError("rejected", f"{CONFIG} has {file.size} bytes; the maximum is {MAX_CONFIG_BYTES}.")
    document = canonical.loads_strict(scan.reader()(CONFIG, 0, file.size), what=CONFIG, max_bytes=MAX_CONFIG_BYTES)
    name = document.get("base_model_name_or_path") if isinstance(document, dict) else None
    if isinstance(name, str) and name.strip():
        return name.strip()
    raise RegistryError(
        "usage",
        f"No base is given, and {CONFIG} names none (base_model_name_or_path).",
        hint="Name the base that the adapter was trained on with `--base NAME`; see `lora-reg base list`.",
    )


def _by_name(client: Client, named: str, namespace: str | None) -> str | None:
    try:
        ref = reference.parse(named)
    except RegistryError:
        return None
    if not ref.is_bare:
        return None
    for home in dict.fromkeys((ref.namespace,) if ref.namespace else (namespace, client.namespace)):
        try:
            found = client.repository(Reference(ref.name, home))
        except RegistryError as error:
            if error.code not in ("not-found", "deleted"):
                raise
        else:
            if found.kind == "base":
                return f"{found.namespace}/{found.name}"
    return None


def _by_alias(client: Client, named: str, namespace: str | None) -> str | None:
    """The base with this alias: in the adapter's own namespace, in the caller's, or in any other, in this order."""
    found = [base for base in client.bases_with_alias(named.rstrip("/")) if base.latest is not None]
    for home in (namespace, client.namespace):
        for base in found:
            if base.namespace == home:
                return f"{base.namespace}/{base.name}"
    if len({base.latest.digest for base in found if base.latest is not None}) > 1:
        several = " and ".join(f"{base.namespace}/{base.name}" for base in found)
        raise RegistryError(
            "conflict",
            f"{named[:200]!r}, as the adapter names its base, is an alias of {several}, whose newest versions differ.",
            hint=f"Name the one that you mean: `--base {found[0].namespace}/{found[0].name}`.",
        )
    return f"{found[0].namespace}/{found[0].name}" if found else None


def _registration(scan: Scan, named: str) -> str:
    """The command that registers the base, with a name made of the config's: from its folder if it is on this machine,
    else from the Hub, of which only headers are fetched."""
    last = named.replace("\\", "/").rstrip("/").rpartition("/")[2].lower().removesuffix("-hf")
    name = _NOT_IN_NAMES.sub(lambda match: match[0] if match[0] in (".", "_", "__") else "-", last).strip("-._")
    folder = Path(named).expanduser() if is_local_path(named) else snapshot_of(named)
    known = folder is not None and folder.is_dir() and folder.resolve() != scan.folder
    place = str(folder) if known else f"hf://{named}" if _HUB_ID.match(named) else "DIR"
    words = ["lora-reg", "base", "add", name[: reference.MAX_NAME].strip("-._") or "NAME"]
    return shlex.join([*words, place, "--alias", named])
