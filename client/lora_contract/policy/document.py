"""The policy document. Each field has a default, and all defaults together are the policy that needs no writing."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from lora_contract import canonical
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.serveability import Runtime
from lora_contract.signing import parse_public_key
from lora_contract.validation import Layer, Precision

MAX_BYTES: Final = 256 * 1024

Nats = Annotated[float, Meta(ge=0, le=100)]
Role = Literal["reader", "writer", "admin"]

LEAST_EFFECT: Final = 0.02
"""Nats per token, 2 % of perplexity. On the same records a difference of 0.0005 is already beyond its interval."""

LEAST_SHARE: Final = 0.07
"""Of what the holder of the tag has gained over the base. Training again with another seed moves the loss by up
to 0.044 of the gain (docs/policies.md has the figures): a smaller difference says nothing of the work done."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Quality(_Part, frozen=True):
    """Held-out loss, on each evaluation set of the gate.

    sets: references to data sets that are always evaluated, beside those that the caller gives. better_than_base: by
    more than its interval and `least_effect`. not_worse_than_holder: of the tag, where what counts is at least also
    `least_share` of the holder's own gain over the base, and the whole interval must lie beyond it. highest: ceilings
    in nats per token by the set's reference.
    """

    sets: list[str] = []
    better_than_base: bool = True
    not_worse_than_holder: bool = True
    least_effect: Nats = LEAST_EFFECT
    least_share: Annotated[float, Meta(ge=0, le=1)] = LEAST_SHARE
    level: Annotated[float, Meta(ge=0.5, le=0.999)] = 0.95
    highest: dict[str, Nats] = {}


class Forgetting(_Part, frozen=True):
    """Loss on general text. sets: references. most: increase in nats per token over the tag's holder, or over the base
    where there is none; None: reported and not judged, since every adapter of one domain forgets some."""

    sets: list[str] = []
    most: Nats | None = None


class Behaviour(_Part, frozen=True):
    """Expected answers. sets: references. least: share of the answers of each set that must be as expected.

    tasks: least values of metrics of lm-evaluation-harness, by `task.metric`; only a user's own machine runs them.
    """

    sets: list[str] = []
    least: Annotated[float, Meta(ge=0, le=1)] = 1.0
    tasks: dict[str, Annotated[float, Meta(ge=-1e9, le=1e9)]] = {}


class Approvals(_Part, frozen=True):
    """Of people beside the one who promotes. count 0: none are asked for."""

    count: Annotated[int, Meta(ge=0, le=100)] = 0
    role: Role = "writer"


class Signatures(_Part, frozen=True):
    """keys: public ones whose signatures count, as PEM or as the base64 inside of it; none: no signature is asked for.
    count: so many different ones of them must have signed exactly this version."""

    keys: Annotated[list[str], Meta(max_length=64)] = []
    count: Annotated[int, Meta(ge=1, le=64)] = 1

    def key_ids(self) -> list[str]:
        return [parse_public_key(key).key_id for key in self.keys]


class Policy(_Part, frozen=True):
    """What must hold before a tag may point to a version.

    blocking: layers whose errors refuse. skip: layers that need not run. allow: codes of findings that never block.
    precision: what the base is loaded as; None: as `validation.usual_precision` has it, by the base's size.
    max_rank: the largest effective rank. licences: of the version's metadata `license`; empty: any. runtimes: servers
    that must be able to serve it as it is. fresh_days: the report's greatest age; None: it does not age, as its inputs
    are pinned.
    """

    schema: Literal[1] = 1
    name: str = "default"
    blocking: tuple[Layer, ...] = ("structure", "tokenizer", "numbers", "effect", "agreement")
    skip: list[Layer] = []
    allow: list[str] = []
    quality: Quality = Quality()
    forgetting: Forgetting = Forgetting()
    behaviour: Behaviour = Behaviour()
    precision: Precision | None = None
    max_rank: Annotated[int, Meta(ge=1)] | None = None
    licences: list[str] = []
    runtimes: list[Runtime] = []
    approvals: Approvals = Approvals()
    signatures: Signatures = Signatures()
    fresh_days: Annotated[float, Meta(gt=0)] | None = None

    def to_bytes(self) -> bytes:
        return canonical.dumps(msgspec.to_builtins(self))

    @property
    def digest(self) -> Digest:
        return Digest.of(self.to_bytes())


DEFAULT: Final = Policy()


def parse_policy(document: Any) -> Policy:
    """A policy of its parsed JSON or TOML, with its keys in one spelling. Raises RegistryError `invalid-request` naming
    the field."""
    try:
        policy = msgspec.convert(document, Policy)
    except msgspec.ValidationError as error:
        raise RegistryError(
            "invalid-request", f"The policy is malformed: {error}.", hint="docs/policies.md lists its fields."
        ) from error
    policy = msgspec.structs.replace(policy, signatures=_signatures(policy.signatures))
    if len(policy.to_bytes()) > MAX_BYTES:
        raise RegistryError("too-large", f"The policy has more than {MAX_BYTES} bytes.")
    return policy


def _signatures(given: Signatures) -> Signatures:
    keys: dict[str, str] = {}
    for position, text in enumerate(given.keys):
        try:
            key = parse_public_key(text)
        except RegistryError as error:
            raise RegistryError(
                "invalid-request", f"The policy is malformed: signatures.keys[{position}]: {error.detail}",
                hint=error.hint,
            ) from error  # fmt: skip
        if key.key_id in keys:
            raise RegistryError("invalid-request", f"The policy is malformed: signatures.keys has {key.key_id} twice.")
        keys[key.key_id] = key.text
    if given.count > max(1, len(keys)):
        raise RegistryError(
            "invalid-request",
            f"The policy is malformed: signatures.count asks for {given.count} signatures of {len(keys)} keys.",
        )
    return Signatures(keys=list(keys.values()), count=given.count)
