"""The policy document. Every field has a default; the defaults together are the default policy."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from lora_contract import canonical, decoding
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.roles import Role
from lora_contract.serveability import Runtime
from lora_contract.signing import parse_public_key
from lora_contract.validation import Layer, Precision

MAX_BYTES: Final = 256 * 1024

Nats = Annotated[float, Meta(ge=0, le=100)]

LEAST_EFFECT: Final = 0.02
"""Nats per token, 2 % of perplexity. On the same records even a difference of 0.0005 is statistically significant."""

LEAST_SHARE: Final = 0.07
"""Share of the gain of the tag's current target over the base. Training again with another seed changes the loss by up
to 0.044 of the gain (docs/policies.md has the figures): a smaller difference is noise."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Quality(_Part, frozen=True):
    """Held-out loss on each evaluation set of the gate.

    Args:
        sets: references to evaluation sets that are always used, in addition to those of the request.
        better_than_base: require an improvement over the base whose interval excludes 0 and that is at least
            `least_effect`.
        not_worse_than_holder: refuse a version whose whole interval is worse than the tag's current target by at least
            `least_effect` and `least_share` of that target's gain over the base.
        least_effect: smallest relevant difference in nats per token.
        least_share: smallest relevant difference as a share of the gain.
        level: confidence level of the intervals.
        highest: largest allowed loss in nats per token, by reference of the evaluation set.
    """

    sets: list[str] = []
    better_than_base: bool = True
    not_worse_than_holder: bool = True
    least_effect: Nats = LEAST_EFFECT
    least_share: Annotated[float, Meta(ge=0, le=1)] = LEAST_SHARE
    level: Annotated[float, Meta(ge=0.5, le=0.999)] = 0.95
    highest: dict[str, Nats] = {}


class Forgetting(_Part, frozen=True):
    """Loss on general text.

    Args:
        sets: references to evaluation sets.
        most: largest increase in nats per token over the tag's current target, or over the base if there is none.
            None: reported and not judged, since every adapter of one domain forgets something.
    """

    sets: list[str] = []
    most: Nats | None = None


class Behaviour(_Part, frozen=True):
    """Expected answers and tasks.

    Args:
        sets: references to evaluation sets.
        least: smallest share of the answers of each set that must be as expected.
        tasks: smallest values of lm-evaluation-harness metrics, by `task.metric`; tasks run only on a user's machine.
    """

    sets: list[str] = []
    least: Annotated[float, Meta(ge=0, le=1)] = 1.0
    tasks: dict[str, Annotated[float, Meta(ge=-1e9, le=1e9)]] = {}


class Approvals(_Part, frozen=True):
    """Approvals by users other than the promoter. count: 0: none are required."""

    count: Annotated[int, Meta(ge=0, le=100)] = 0
    role: Role = "writer"


class Signatures(_Part, frozen=True):
    """Required signatures.

    Args:
        keys: trusted public keys, as PEM or its base64 body; empty: no signature is required.
        count: how many different keys must have signed this version.
    """

    keys: Annotated[list[str], Meta(max_length=64)] = []
    count: Annotated[int, Meta(ge=1, le=64)] = 1

    def key_ids(self) -> list[str]:
        return [parse_public_key(key).key_id for key in self.keys]


class Policy(_Part, frozen=True):
    """The requirements for moving a tag to a version.

    Args:
        blocking: layers whose errors refuse the version.
        skip: layers that need not run.
        allow: codes of findings that never refuse it.
        precision: how the base is loaded; None: `validation.default_precision`, by the base's size.
        max_rank: largest allowed effective rank.
        licences: allowed values of the version's metadata `license`; empty: any.
        runtimes: servers on which it must be servable without conversion.
        fresh_days: largest age of the report; None: unlimited, since its inputs are pinned.
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
    """Validate parsed JSON or TOML as a policy, with normalized keys. Raises RegistryError `invalid-request` naming the
    field."""
    try:
        policy = decoding.convert(document, Policy)
    except msgspec.ValidationError as error:
        raise RegistryError(
            "invalid-request", f"The policy is malformed: {error}.", hint="docs/policies.md lists the fields."
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
            raise RegistryError(
                "invalid-request", f"The policy is malformed: signatures.keys contains {key.key_id} twice."
            )
        keys[key.key_id] = key.text
    if given.count > max(1, len(keys)):
        raise RegistryError(
            "invalid-request",
            f"The policy is malformed: signatures.count requires {given.count} signatures by {len(keys)} keys.",
        )
    return Signatures(keys=list(keys.values()), count=given.count)
