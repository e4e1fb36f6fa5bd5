"""The client of `/api/v1`: one method per endpoint. Prints nothing and stores nothing on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, Literal
from urllib.parse import quote, urlencode

import httpx2

from lora_contract.reference import Reference, check_namespace
from lora_contract.roles import Grant, Visibility
from lora_contract.wire.access import (
    GrantsRequest,
    NamespaceList,
    NamespaceView,
    QuotaRequest,
    TokenList,
    TokenView,
    VisibilityRequest,
)
from lora_contract.wire.common import Identity
from lora_contract.wire.jobs import JobList, JobProgressList, JobView, ReportList
from lora_contract.wire.operations import (
    ComposeRequest,
    ConvertRequest,
    DiffRequest,
    ExtractRequest,
    MergeRequest,
    ReproduceRequest,
    ResizeBaseRequest,
    ResizeRequest,
)
from lora_contract.wire.repositories import (
    AliasRequest,
    CommitRequest,
    CommitResult,
    DeletionView,
    Lineage,
    RepositoryList,
    RepositoryView,
    RetentionRequest,
    RetentionView,
    VersionList,
    VersionView,
    YankRequest,
)
from lora_contract.wire.tags import ProtectRequest, RollbackRequest, TagEvent, TagHistory, TagList, TagRequest, TagView
from lora_contract.wire.uploads import (
    PartSpec,
    PartsRequest,
    PartTarget,
    PartTargets,
    StoredParts,
    UploadRequest,
    UploadSession,
)
from lora_reg.gate_calls import GateCalls
from lora_reg.transport import Body

COMMIT_SECONDS: Final = 3600.0
"""A commit answers after every byte was checked: minutes for a large base."""
POLL_SECONDS: Final = 20


class Client(GateCalls):
    """A client of one registry.

    Args:
        server, token, namespace: None takes them from the settings (environment, files). A reference without a
            namespace gets this one.

    Every method raises RegistryError with the code of the answer.
    """

    # Caller

    def whoami(self) -> Identity:
        """The authenticated caller."""
        return self._get("/whoami", Identity)

    # Namespaces and tokens

    def namespaces(self, *, limit: int | None = None) -> Iterator[NamespaceView]:
        """Readable namespaces by name."""
        return self._pages("/namespaces", NamespaceList, {}, limit)

    def namespace_view(self, name: str) -> NamespaceView:
        return self._get(f"/namespaces/{check_namespace(name)}", NamespaceView)

    def set_visibility(self, name: str, visibility: Visibility) -> NamespaceView:
        """Set who may read a namespace; for its administrators."""
        request = VisibilityRequest(visibility=visibility)
        return self._put(f"/namespaces/{check_namespace(name)}", request, NamespaceView)

    def set_quota(
        self, name: str, *, max_bytes: int | None, max_versions: int | None, max_jobs: int | None = None
    ) -> NamespaceView:
        """Set how much a namespace may hold, and how many jobs may be queued or running in it at once; for
        administrators of all namespaces. None: no limit."""
        request = QuotaRequest(max_bytes=max_bytes, max_versions=max_versions, max_jobs=max_jobs)
        return self._put(f"/namespaces/{check_namespace(name)}/quota", request, NamespaceView)

    def tokens(self, *, limit: int | None = None) -> Iterator[TokenView]:
        """Tokens with a grant in a namespace that the caller administers, by name."""
        return self._pages("/tokens", TokenList, {}, limit)

    def change_grants(
        self,
        name: str,
        *,
        add: Sequence[Grant] = (),
        remove: Sequence[str] = (),
        replace: Sequence[Grant] | None = None,
    ) -> TokenView:
        """Change the grants of a token in namespaces that the caller administers. remove: patterns. replace: all."""
        request = GrantsRequest(add=list(add), remove=list(remove), replace=None if replace is None else list(replace))
        return self._put(f"/tokens/{quote(name, safe='')}", request, TokenView)

    def revoke_token(self, name: str) -> None:
        """Remove the grants of a token in namespaces that the caller administers; without others it is revoked."""
        self._send("DELETE", f"/tokens/{quote(name, safe='')}")

    # Repositories and versions

    def repositories(
        self, *, pattern: str | None = None, kind: str | None = None, limit: int | None = None
    ) -> Iterator[RepositoryView]:
        """Repositories by name, fetched page by page. pattern: a glob such as `acme/sql-*`. limit None: all."""
        return self._pages("/repositories", RepositoryList, {"q": pattern, "kind": kind}, limit)

    def bases_with_alias(self, alias: str) -> list[RepositoryView]:
        """Bases with this alias, in any case of letters, by namespace."""
        found = self._pages("/repositories", RepositoryList, {"alias": alias, "kind": "base"}, None)
        # A server that does not know the parameter answers with all bases.
        return [base for base in found if alias.casefold() in {name.rstrip("/").casefold() for name in base.aliases}]

    def repository(self, ref: str | Reference) -> RepositoryView:
        return self._get(self._repository(ref), RepositoryView)

    def delete_repository(self, ref: str | Reference) -> None:
        self._send("DELETE", self._repository(ref))

    def versions(self, ref: str | Reference, *, limit: int | None = None) -> Iterator[VersionView]:
        """Versions, newest first."""
        return self._pages(f"{self._repository(ref)}/versions", VersionList, {}, limit)

    def version(self, ref: str | Reference) -> VersionView:
        return self._get(self._version(ref), VersionView)

    def resolve(self, ref: str | Reference, *, etag: str | None = None) -> tuple[VersionView | None, str]:
        """The version that a reference means now, and its ETag; None if it still has `etag`."""
        headers = {"If-None-Match": etag} if etag else {}
        response = self._call("GET", self._version(ref), headers=headers)
        if response.status_code == 304:
            return None, etag or ""
        return self._decode(response, VersionView), response.headers.get("etag", "")

    def manifest(self, ref: str | Reference) -> bytes:
        return self._call("GET", f"{self._version(ref)}/manifest").content

    def fingerprint(self, ref: str | Reference) -> bytes:
        return self._call("GET", f"{self._version(ref)}/fingerprint").content

    def file(
        self, ref: str | Reference, path: str, *, start: int = 0, end: int | None = None, whole: bool = False
    ) -> AbstractContextManager[httpx2.Response]:
        """Stream a file of a version from byte `start` to before `end` (None: to its end).

        whole: request it without a range. A response of status 416 is returned, not raised.
        """
        headers = {} if whole else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        url = self._url(f"{self._version(ref)}/files/{quote(path)}")
        return self.transport.stream("GET", url, headers=headers, accept=(416,))

    def deletion(self, ref: str | Reference) -> DeletionView:
        """What deleting a version would free, and when; with a bare name, of the repository."""
        parsed = self.parse(ref)
        path = self._repository(parsed) if parsed.is_bare else self._version(parsed)
        return self._get(f"{path}/deletion", DeletionView)

    def delete_version(
        self, ref: str | Reference, *, purge: bool = False, derived: bool = False, reason: str = ""
    ) -> None:
        """Delete a version. purge: free its bytes at once; needs a reason. derived: with what derives from it."""
        query = {"purge": "true", "derived": str(derived).lower(), "reason": reason} if purge or derived else {}
        self._send("DELETE", self._version(ref) + (f"?{urlencode(query)}" if query else ""))

    def retention(self, ref: str | Reference, *, keep_last: int | None = None) -> RetentionView:
        """The retention rule of a repository, and what it would delete; with `keep_last`, what such a rule would."""
        return self._get(f"{self._repository(ref)}/retention", RetentionView, {"keep_last": keep_last})

    def set_retention(self, ref: str | Reference, keep_last: int | None) -> RetentionView:
        """Set the retention rule of a repository; None removes it."""
        return self._put(f"{self._repository(ref)}/retention", RetentionRequest(keep_last=keep_last), RetentionView)

    def restore_version(self, ref: str | Reference) -> VersionView:
        """Restore a deleted version, named by number or digest, while its bytes are kept."""
        return self._decode(self._send("PUT", f"{self._version(ref)}/restoration"), VersionView)

    def yank(self, ref: str | Reference, reason: str) -> VersionView:
        return self._put(f"{self._version(ref)}/yank", YankRequest(reason=reason), VersionView)

    def unyank(self, ref: str | Reference) -> VersionView:
        return self._decode(self._send("DELETE", f"{self._version(ref)}/yank"), VersionView)

    def lineage(self, ref: str | Reference, *, direction: Literal["up", "down", "both"] = "both") -> Lineage:
        return self._get(f"{self._version(ref)}/lineage", Lineage, {"direction": direction})

    def provenance(self, ref: str | Reference) -> bytes:
        """The in-toto statement (SLSA provenance v1) of a derived version. Raises `not-found` for a pushed one."""
        return self._call("GET", f"{self._version(ref)}/provenance").content

    def reports(self, ref: str | Reference) -> ReportList:
        return self._get(f"{self._version(ref)}/reports", ReportList)

    def add_aliases(self, ref: str | Reference, aliases: list[str]) -> RepositoryView:
        return self._put(f"{self._repository(ref)}/aliases", AliasRequest(aliases=aliases), RepositoryView)

    # Tags

    def tags(self, ref: str | Reference) -> TagList:
        return self._get(f"{self._repository(ref)}/tags", TagList)

    def tag(self, ref: str | Reference, tag: str) -> TagView:
        return self._get(self._tag(ref, tag), TagView)

    def set_tag(
        self,
        ref: str | Reference,
        tag: str,
        target: str,
        *,
        reason: str = "",
        generation: int | None = None,
        create: bool = False,
    ) -> TagView:
        """Point a tag at `target`, a selector in the same repository.

        generation: required of the tag. create: require that the tag does not exist. Raises `tag-moved` with the
        present value in `facts["current"]`, `tag-protected`.
        """
        request = TagRequest(target=target, reason=reason)
        return self._put(self._tag(ref, tag), request, TagView, _expecting(generation, create))

    def remove_tag(self, ref: str | Reference, tag: str, *, generation: int | None = None) -> None:
        self._send("DELETE", self._tag(ref, tag), headers=_expecting(generation, False))

    def protect(self, ref: str | Reference, tag: str, protected: bool) -> TagView:
        return self._put(f"{self._tag(ref, tag)}/protection", ProtectRequest(protected=protected), TagView)

    def rollback(
        self, ref: str | Reference, tag: str, *, to: str | None = None, reason: str = "", generation: int | None = None
    ) -> TagView:
        """Move a tag back. to: a selector; None: its previous target."""
        request = RollbackRequest(to=to, reason=reason)
        return self._post(f"{self._tag(ref, tag)}/rollback", request, TagView, _expecting(generation, False))

    def history(self, ref: str | Reference, *, tag: str | None = None, limit: int | None = None) -> Iterator[TagEvent]:
        """Moves of one tag or of all tags, newest first."""
        return self._pages(f"{self._repository(ref)}/history", TagHistory, {"tag": tag}, limit)

    # Uploads and commits

    def open_upload(self, request: UploadRequest) -> UploadSession:
        return self._post("/uploads", request, UploadSession)

    def upload(self, upload_id: str) -> UploadSession:
        """The present state of an upload session, with fresh presigned URLs."""
        return self._get(f"/uploads/{upload_id}", UploadSession)

    def abandon_upload(self, upload_id: str) -> None:
        self._send("DELETE", f"/uploads/{upload_id}")

    def put_blob(self, upload_id: str, digest: str, body: Body, size: int) -> None:
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        self._call("PUT", f"/uploads/{upload_id}/blobs/{digest}", headers=headers, content=body)

    def complete_blob(self, upload_id: str, digest: str) -> None:
        """Have the server check the bytes that the store received, and wait for it."""
        path = f"/uploads/{upload_id}/blobs/{digest}/complete"
        while self._send("POST", path, timeout=COMMIT_SECONDS).status_code == 202:
            pass  # the server waits before it answers

    def stored_parts(self, upload_id: str, digest: str) -> StoredParts:
        """The parts of a blob that need not be sent again."""
        return self._get(f"/uploads/{upload_id}/blobs/{digest}/parts", StoredParts)

    def part_target(self, upload_id: str, digest: str, part: PartSpec) -> PartTarget:
        """How to send a part."""
        path = f"/uploads/{upload_id}/blobs/{digest}/parts"
        return self._post(path, PartsRequest(parts=[part]), PartTargets).parts[0]

    def put_part(self, upload_id: str, digest: str, number: int, body: Body, size: int) -> None:
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        self._call("PUT", f"/uploads/{upload_id}/blobs/{digest}/parts/{number}", headers=headers, content=body)

    def commit(self, ref: str | Reference, request: CommitRequest) -> CommitResult:
        path = f"{self._repository(ref)}/versions"
        return self._post(path, request, CommitResult, timeout=COMMIT_SECONDS)

    # Jobs

    def merge(self, request: MergeRequest) -> JobView:
        return self._post("/merges", request, JobView)

    def compose(self, request: ComposeRequest) -> JobView:
        return self._post("/compositions", request, JobView)

    def extract(self, request: ExtractRequest) -> JobView:
        return self._post("/extractions", request, JobView)

    def resize(self, request: ResizeRequest) -> JobView:
        return self._post("/resizes", request, JobView)

    def convert(self, request: ConvertRequest) -> JobView:
        return self._post("/conversions", request, JobView)

    def resize_base(self, request: ResizeBaseRequest) -> JobView:
        return self._post("/base-resizes", request, JobView)

    def diff(self, before: str | Reference, after: str | Reference) -> JobView:
        return self._post("/diffs", DiffRequest(str(self.parse(before)), str(self.parse(after))), JobView)

    def reproduce(self, ref: str | Reference) -> JobView:
        return self._post("/reproductions", ReproduceRequest(str(self.parse(ref))), JobView)

    def jobs(self, *, state: str | None = None, kind: str | None = None, limit: int | None = None) -> Iterator[JobView]:
        """Jobs, newest first."""
        return self._pages("/jobs", JobList, {"state": state, "kind": kind}, limit)

    def job(self, job_id: str) -> JobView:
        """A job by its id, or by a prefix of it that no other job's id has."""
        return self._get(f"/jobs/{quote(job_id, safe='')}", JobView)

    def job_progress(self, job_id: str, *, offset: int = 0, wait: int = 0) -> JobProgressList:
        """Progress records from `offset`. wait: seconds that the server may wait for a new record."""
        params: dict[str, str | int | None] = {"offset": offset, "wait": wait}
        return self._get(f"/jobs/{quote(job_id, safe='')}/progress", JobProgressList, params)

    def cancel_job(self, job_id: str) -> JobView:
        return self._decode(self._send("POST", f"/jobs/{quote(job_id, safe='')}/cancel"), JobView)

    def retry_job(self, job_id: str) -> JobView:
        return self._decode(self._send("POST", f"/jobs/{quote(job_id, safe='')}/retry"), JobView)


def _expecting(generation: int | None, create: bool) -> dict[str, str]:
    if create:
        return {"If-None-Match": "*"}
    return {} if generation is None else {"If-Match": f'"gen-{generation}"'}
