"""Administration commands for trust rules. Does not import the HTTP stack."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from lora_contract import decoding
from lora_contract.errors import RegistryError
from lora_contract.roles import parse_grant
from lora_contract.wire.identity import IssuerKeys, Kind, TrustRequest, TrustView
from lora_registry.admin import open_checked
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import OPERATOR
from lora_registry.identity import issuers, trust
from lora_registry.oidc.rules import ACCOUNT, ACCOUNT_ID, NAMESPACE
from lora_registry.settings import ServiceSettings


def add(settings: ServiceSettings, request: TrustRequest) -> TrustView:
    return trust.add(_operator(settings), request)


def list_all(settings: ServiceSettings) -> list[TrustView]:
    return trust.list_all(_operator(settings)).items


def remove(settings: ServiceSettings, name: str) -> None:
    trust.remove(_operator(settings), name)


def set_keys(
    settings: ServiceSettings, issuer: str, *, jwks_url: str | None, jwks_file: Path | None, ca_bundle: Path | None
) -> None:
    issuers.set_keys(_operator(settings), issuer, _keys(jwks_url, jwks_file, ca_bundle) or IssuerKeys())


def request(
    name: str,
    *,
    grants: Iterable[str],
    github: str | None,
    repository_id: str | None,
    owner_id: str | None,
    workflow: str | None,
    gitlab: str | None,
    project_id: str | None,
    namespace_id: str | None,
    environment: str | None,
    ref: str | None,
    kubernetes: str | None,
    uid: str | None,
    person: bool,
    group: str | None,
    issuer: str | None,
    audience: str | None,
    claims: Iterable[str],
    seconds: int | None,
    pull_requests: bool,
    note: str,
    jwks_url: str | None,
    jwks_file: Path | None,
    ca_bundle: Path | None,
) -> TrustRequest:
    """Make the rule that the options of `trust add` describe. Raises `usage`."""
    person = person or group is not None
    chosen = {"github": github, "gitlab": gitlab, "kubernetes": kubernetes, "person": person or None}
    kinds: list[Kind] = [kind for kind, value in chosen.items() if value is not None]  # type: ignore[misc]
    if len(kinds) > 1:
        raise RegistryError("usage", f"The rule is for {' and '.join(kinds)}; expected one of them.")
    kind = kinds[0] if kinds else "other"
    owned: dict[str, tuple[Kind, str | None]] = {
        "--repository-id": ("github", repository_id),
        "--owner-id": ("github", owner_id),
        "--workflow": ("github", workflow),
        "--project-id": ("gitlab", project_id),
        "--namespace-id": ("gitlab", namespace_id),
        "--uid": ("kubernetes", uid),
    }
    for option, (wanted, value) in owned.items():
        if value is not None and wanted != kind:
            raise RegistryError("usage", f"{option} belongs to --{wanted}.")
    compared = dict(_claim(each) for each in claims)
    compared |= _named(
        repository_id=repository_id,
        repository_owner_id=owner_id,
        project_id=project_id,
        namespace_id=namespace_id,
        environment=environment,
        groups=group,
    )
    if workflow is not None:
        compared["job_workflow_ref"] = f"{github}/.github/workflows/{workflow}"
    if kubernetes is not None:
        namespace, slash, account = kubernetes.partition("/")
        if not (slash and namespace and account):
            raise RegistryError("usage", f"{kubernetes!r} is not a service account; expected NAMESPACE/ACCOUNT.")
        compared |= {NAMESPACE: namespace, ACCOUNT: account, **({ACCOUNT_ID: uid} if uid else {})}
    if ref is not None:
        compared |= _ref(kind, ref)
    fields = {
        "name": name,
        "kind": kind,
        "claims": compared,
        "grants": [parse_grant(each) for each in grants],
        "issuer": issuer,
        "audience": audience,
        "seconds": seconds,
        "pull_requests": pull_requests,
        "note": note or github or gitlab or "",
        "keys": _keys(jwks_url, jwks_file, ca_bundle),
    }
    try:
        return decoding.convert(fields, TrustRequest)
    except msgspec.ValidationError as error:
        raise RegistryError("usage", f"The rule is not valid: {error}.") from error


def _ref(kind: Kind, ref: str) -> dict[str, str]:
    """A branch, unless it begins with refs/. A tag may have the name of a branch, and more people may push tags."""
    full = ref if ref.startswith("refs/") else f"refs/heads/{ref}"
    if kind != "gitlab":
        return {"ref": full}
    match full.split("/", 2):
        case ["refs", "heads", name]:
            return {"ref": name, "ref_type": "branch"}
        case ["refs", "tags", name]:
            return {"ref": name, "ref_type": "tag"}
    raise RegistryError("usage", f"{ref!r} is neither a branch nor a tag; expected BRANCH or refs/tags/TAG.")


def _claim(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise RegistryError("usage", f"{text[:100]!r} is not a claim; expected NAME=VALUE.")
    return name, value


def _named(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def _keys(url: str | None, file: Path | None, ca: Path | None) -> IssuerKeys | None:
    if (url, file, ca) == (None, None, None):
        return None
    return IssuerKeys(
        jwks_url=url, jwks=file.read_text("utf-8") if file else None, ca=ca.read_text("utf-8") if ca else None
    )


def _operator(settings: ServiceSettings) -> Caller:
    return Caller(open_checked(settings), OPERATOR)
