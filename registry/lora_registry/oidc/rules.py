"""Trust rules: which identity tokens stand for whom, with which rights. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lora_contract import glob
from lora_contract.roles import Grant
from lora_contract.wire.identity import Kind as KindName
from lora_registry.oidc.refusal import RefusedTokenError
from lora_registry.oidc.verify import Identity

NAMESPACE: Final = "kubernetes.io/namespace"
ACCOUNT: Final = "kubernetes.io/serviceaccount/name"
ACCOUNT_ID: Final = "kubernetes.io/serviceaccount/uid"

MAX_CLAIMS: Final = 20
MAX_VALUE: Final = 512
CI_SECONDS: Final = 15 * 60
PERSON_SECONDS: Final = 8 * 3600
MAX_CALLER: Final = 100
_PERSON_NAMES: Final = ("preferred_username", "email", "name", "sub")

_ID: Final = re.compile(r"(.*[/_-])?(id|uid|oid|sub)\Z|.*_id\Z")
_GROUP: Final = re.compile(r"(.*[/_-])?(sub|oid|groups|roles)\Z")
_RESERVED: Final = ("iss", "aud", "exp", "iat", "nbf", "jti")
_FROM_PULL_REQUESTS: Final = {
    "event_name": re.compile(r"pull_request"),
    "pipeline_source": re.compile(r"(external_)?(merge|pull)_request_event\Z"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """What is particular about the tokens of an issuer.

    Args:
        issuer: the usual one; None: to be named.
        required: claims that a rule must compare, because only they stay what they are when names change hands.
        identifies: pattern of the claims of which a rule must compare one, if `required` is empty.
        refused: claims that a rule may not compare, with the reason.
        once: a token is exchanged once.
        bearer: a token is accepted as it is, without an exchange.
        adds: the grants of all matching rules add up; otherwise those of the most specific rules do.
        seconds: life of the tokens that are issued, unless a rule says otherwise.
    """

    issuer: str | None = None
    required: tuple[str, ...] = ()
    identifies: re.Pattern[str] = _ID
    refused: Mapping[str, str] | None = None
    once: bool = True
    bearer: bool = False
    adds: bool = False
    seconds: int = CI_SECONDS


KINDS: Final[dict[str, Kind]] = {
    "github": Kind(
        issuer="https://token.actions.githubusercontent.com",
        required=("repository_id", "repository_owner_id"),
        refused={"sub": "GitHub writes it in two forms and names can change hands; compare ids"},
    ),
    "gitlab": Kind(
        issuer="https://gitlab.com",
        required=("project_id", "namespace_id"),
        refused={"sub": "it consists of names, which can change hands; compare ids"},
    ),
    "kubernetes": Kind(required=(NAMESPACE, ACCOUNT), once=False, bearer=True),
    "person": Kind(identifies=_GROUP, adds=True, seconds=PERSON_SECONDS),
    "other": Kind(),
}


@dataclass(frozen=True, slots=True)
class TrustRule:
    """Tokens of `issuer` for `audience` whose claims equal `claims` get `grants`.

    Args:
        name: of the rule, unique among those in force.
        claims: by name; `/` leads into nested objects. In the value of `ref`, `*` stands for any text. A claim that is
            a list equals each of its elements. A value without `@` equals the part before `@` of a claim whose name
            ends in `_ref`.
        seconds: longest life of a token that is issued.
        pull_requests: pipelines of pull requests, which run what strangers propose, may get more than the role reader.
    """

    id: int
    name: str
    kind: KindName
    issuer: str
    audience: str
    claims: Mapping[str, str]
    grants: tuple[Grant, ...]
    seconds: int
    pull_requests: bool = False

    @property
    def rank(self) -> tuple[int, bool]:
        """The more specific of two rules has the higher one: more claims, then an exact ref rather than a glob."""
        return len(self.claims), "*" not in self.claims.get("ref", "*")


@dataclass(frozen=True, slots=True)
class Trusted:
    """What the rules give to a token. name: of the caller, the same for each token of the same origin."""

    name: str
    kind: KindName
    rules: tuple[TrustRule, ...]
    grants: tuple[Grant, ...]
    seconds: int


def problem_of(kind: KindName, claims: Mapping[str, str]) -> str | None:
    """Say what is wrong with the claims of a new rule; None if nothing is."""
    row = KINDS[kind]
    if len(claims) > MAX_CLAIMS:
        return f"The rule compares {len(claims)} claims; at most {MAX_CLAIMS} are allowed."
    for name, value in claims.items():
        if name in _RESERVED:
            return f"The claim {name!r} is checked for every token; a rule cannot compare it."
        if row.refused and name in row.refused:
            return f"A {kind} rule cannot compare the claim {name!r}: {row.refused[name]}."
        if not 0 < len(value) <= MAX_VALUE or not 0 < len(name) <= MAX_VALUE or not (name + value).isprintable():
            return f"The claim {name[:80]!r} must have a value of 1 to {MAX_VALUE} printable characters."
        if name != "ref" and "*" in value:
            return f"The claim {name!r} has the value {value!r}; only the value of `ref` may contain `*`."
    missing = [name for name in row.required if name not in claims]
    if missing:
        return f"A {kind} rule must compare {' and '.join(row.required)}; {' and '.join(missing)} is missing."
    if not row.required and not any(row.identifies.match(name) for name in claims):
        example = "`sub`, `oid` or `groups`" if kind == "person" else "`sub` or a claim whose name ends in `_id`"
        return f"The rule names no immutable id, so that others could get its rights later; compare {example}."
    return None


def choose(rules: Iterable[TrustRule], identity: Identity) -> Trusted:
    """Return what the matching rules give. Raises RefusedTokenError if none matches.

    Rules of different kinds for the same token do not mix: those of the most specific rule's kind count.
    """
    matching = [rule for rule in rules if matches(rule, identity)]
    if not matching:
        raise RefusedTokenError(f"no rule of {identity.issuer} matches its claims")
    best = max(matching, key=lambda rule: rule.rank)
    chosen = [rule for rule in matching if rule.kind == best.kind and (KINDS[best.kind].adds or rule.rank == best.rank)]
    chosen.sort(key=lambda rule: rule.id)
    return Trusted(
        name=caller_name(chosen[0], identity),
        kind=best.kind,
        rules=tuple(chosen),
        grants=tuple(dict.fromkeys(grant for rule in chosen for grant in rule.grants)),
        seconds=min(rule.seconds for rule in chosen),
    )


def matches(rule: TrustRule, identity: Identity) -> bool:
    """Whether a rule is meant for a token."""
    if (rule.issuer, rule.audience) != (identity.issuer, identity.audience):
        return False
    if identity.access and rule.kind != "other":
        return False
    if rule.kind == "person" and not _is_for_client(identity, rule.audience):
        return False
    if not all(_equal(name, wanted, identity.claims.get(name)) for name, wanted in rule.claims.items()):
        return False
    writes = any(grant.role != "reader" for grant in rule.grants)
    return rule.pull_requests or not writes or not from_pull_request(identity.claims)


def from_pull_request(claims: Mapping[str, Any]) -> bool:
    """Whether a pipeline runs for a pull request, and so perhaps what a stranger wrote."""
    return any(pattern.match(_text(claims.get(name)) or "") for name, pattern in _FROM_PULL_REQUESTS.items())


def _is_for_client(identity: Identity, client_id: str) -> bool:
    """Whether a token says who signed in at this client (OpenID Connect Core, 3.1.3.7)."""
    return isinstance(identity.claims.get("sub"), str) and identity.claims.get("azp", client_id) == client_id


def _equal(name: str, wanted: str, value: Any) -> bool:
    if isinstance(value, list):
        return any(_text(each) == wanted for each in value)
    text = _text(value)
    if text is None:
        return False
    if name == "ref" and "*" in wanted:
        return glob.matches(wanted, text)
    if name.endswith("_ref") and "@" not in wanted:
        text = text.partition("@")[0]
    return text == wanted


def _text(value: Any) -> str | None:
    """A claim as issuers write it in text: some send numbers and truth values as strings, some do not."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int) else None


def caller_name(rule: TrustRule, identity: Identity) -> str:
    """The name under which events and versions show the caller: what it is, `#`, and what identifies it.

    A pipeline is identified by its rule, so that two commits of a repository do not approve each other; a person by a
    hash of issuer and subject, whatever the person is called there at the time.
    """
    claims = identity.claims
    match rule.kind:
        case "person":
            subject = f"{identity.issuer}\0{claims.get('sub')}".encode()
            origin = hashlib.sha256(subject).hexdigest()[:12]
            shown = next(filter(None, (_text(claims.get(name)) for name in _PERSON_NAMES)), "")
        case "kubernetes":
            origin, shown = rule.name, f"{claims.get(NAMESPACE)}/{claims.get(ACCOUNT)}"
        case _:
            commit = (_text(claims.get("sha")) or "")[:12]
            ref = (_text(claims.get("ref")) or _text(claims.get("sub")) or "").removeprefix("refs/heads/")
            origin, shown = rule.name, f"{ref}@{commit}" if commit else ref
    room = MAX_CALLER - len(origin) - 1
    return f"{''.join(c if c.isprintable() and c != '#' else '-' for c in shown)[-room:]}#{origin}"


def facts_of(identity: Identity, names: Sequence[str]) -> dict[str, str]:
    """The claims of a token that the audit log keeps."""
    found = {name: _text(identity.claims.get(name)) for name in names}
    return {name: text[:200] for name, text in found.items() if text}
