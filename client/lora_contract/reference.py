"""References: the names of bases, adapters, models and datasets.

    reference  = [ namespace "/" ] name [ ":" ( tag | version ) ] [ "@" digest ]
    name       = component            ; at most 64 characters (the namespace: 96)
    component  = alnum { separator alnum }        alnum = [A-Za-z0-9]+
    separator  = "." | "_" | "__" | "-"+          ; in lower case an OCI name component, which the OCI dialect serves
    version    = "v" nonzero-number               ; assigned by the server, immutable
    tag        = [A-Za-z0-9_][A-Za-z0-9._-]{0,127} ; an OCI tag, except "latest", vN and 40 hex digits
    digest     = "sha256:" 64 hex digits

Case does not distinguish namespaces and names. A namespace is always in lower case; a repository is shown as it was
first pushed.

A bare name, or `name:latest`, is the newest committed version: computed, never stored. If a reference has both a tag
and a digest, the digest decides, and the tag must have pointed to it once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError

MAX_NAMESPACE: Final = 96
MAX_NAME: Final = 64
DEFAULT_NAMESPACE: Final = "default"
RESERVED_NAMESPACES: Final = frozenset(
    {"api", "hf", "v2", "schema", "healthz", "readyz", "metrics", "static", "assets"}
)
"""First parts of the service's own URLs; pages of its own are under `/-/`, which is no namespace."""

_COMPONENT: Final = re.compile(r"[A-Za-z0-9]+(?:(?:\.|__|_|-+)[A-Za-z0-9]+)*\Z")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_VERSION: Final = re.compile(r"v[1-9][0-9]{0,17}\Z")
_VERSION_LIKE: Final = re.compile(r"[vV][0-9]+\Z")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}\Z")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference. name: as it was written. namespace: None until `with_namespace` fills in the default.

    At most one of `tag` and `version` is set. Without them and without a digest it refers to the newest version.
    """

    name: str
    namespace: str | None = None
    tag: str | None = None
    version: int | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        text = self.repository
        if self.tag is not None:
            text += f":{self.tag}"
        if self.version is not None:
            text += f":v{self.version}"
        if self.digest is not None:
            text += f"@{self.digest}"
        return text

    @property
    def repository(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def is_bare(self) -> bool:
        """Whether only a repository is named: no tag, no version, no digest."""
        return self.tag is None and self.version is None and self.digest is None

    @property
    def is_pinned(self) -> bool:
        """Whether the reference is immutable."""
        return self.version is not None or self.digest is not None

    def with_namespace(self, default: str) -> Reference:
        return self if self.namespace else replace(self, namespace=check_namespace(default))

    def folded(self) -> Reference:
        """The reference in the one spelling by which repositories are told apart."""
        return replace(self, name=self.name.lower(), namespace=self.namespace and self.namespace.lower())

    def selector(self) -> str:
        """The part after the repository in a URL: `latest`, a tag, `vN`, a digest, or `tag@digest`."""
        head = self.tag or (f"v{self.version}" if self.version is not None else "")
        if self.digest is not None:
            return f"{head}@{self.digest}" if head else str(self.digest)
        return head or "latest"


def parse(text: str) -> Reference:
    """Parse a reference. Raises RegistryError `invalid-reference`, naming the invalid part."""
    if len(text) > 512:
        raise _invalid(text, "is longer than 512 characters")
    rest, at, digest_text = text.partition("@")
    digest = None
    if at:
        try:
            digest = Digest.parse(digest_text)
        except RegistryError as error:
            raise _invalid(text, f"has {digest_text[:80]!r} after '@', not sha256:<64 hex digits>") from error
    path, colon, selector = rest.partition(":")
    namespace, slash, name = path.rpartition("/")
    if slash:
        namespace = check_namespace(namespace, text)
    check_name(name, text)
    if not colon or selector == "latest":
        return Reference(name, namespace or None, digest=digest)
    if _VERSION.match(selector):
        return Reference(name, namespace or None, version=int(selector[1:]), digest=digest)
    return Reference(name, namespace or None, tag=check_tag(selector), digest=digest)


def parse_selector(namespace: str, name: str, selector: str) -> Reference:
    """Parse a selector of a known repository: the inverse of `Reference.selector`."""
    if selector.startswith("sha256:"):
        return parse(f"{namespace}/{name}@{selector}")
    return parse(f"{namespace}/{name}:{selector}")


def check_namespace(namespace: str, whole: str | None = None) -> str:
    """Return a namespace in lower case. Raises RegistryError `invalid-reference`."""
    if len(namespace) > MAX_NAMESPACE or not _COMPONENT.match(namespace):
        raise _invalid(
            whole or namespace,
            f"has the namespace {namespace[:120]!r}; expected letters and digits joined by single '.', '_', '__' or "
            f"dashes, at most {MAX_NAMESPACE} characters",
        )
    return namespace.lower()


def check_new_namespace(namespace: str) -> str:
    """Check a namespace in which something is created. Raises RegistryError `invalid-reference` if it is reserved."""
    if namespace.lower() in RESERVED_NAMESPACES:
        raise RegistryError(
            "invalid-reference",
            f"{namespace!r} is reserved for URLs of the service and cannot be a namespace.",
            hint="Choose another namespace.",
        )
    return check_namespace(namespace)


def check_name(name: str, whole: str | None = None) -> str:
    """Return a repository's name as it is written. Raises RegistryError `invalid-reference`."""
    if len(name) > MAX_NAME or not _COMPONENT.match(name):
        raise _invalid(
            whole or name,
            f"has the name {name[:120]!r}; expected letters and digits joined by single '.', '_', '__' or dashes, at "
            f"most {MAX_NAME} characters",
        )
    return name


def check_tag(tag: str) -> str:
    """Check a tag that a user sets. Raises RegistryError `invalid-reference` for reserved and malformed tags."""
    if tag.lower() == "latest":
        raise _invalid(tag, "is computed (the newest version) and cannot be set as a tag")
    if _VERSION_LIKE.match(tag):
        raise _invalid(tag, "looks like a version number; version numbers are assigned by the server and are not tags")
    if _COMMIT.match(tag):
        raise _invalid(tag, "looks like a commit id of 40 hex digits, which is not allowed as a tag")
    if not _TAG.match(tag):
        raise _invalid(
            tag, "is not a tag: expected a letter, digit or '_', then up to 127 letters, digits, '.', '_' or '-'"
        )
    return tag


def _invalid(text: str, why: str) -> RegistryError:
    return RegistryError("invalid-reference", f"{text[:200]!r} {why}.")
