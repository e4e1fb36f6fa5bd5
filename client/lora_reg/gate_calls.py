"""The endpoints of validations, policies, gates, promotions and signatures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lora_contract.reference import Reference
from lora_contract.signing import Envelope, PublicKey, SignatureFormat
from lora_contract.validation import Precision
from lora_contract.wire.gates import (
    ApprovalView,
    ApproveRequest,
    GateRequest,
    GateView,
    PolicyList,
    PolicyRequest,
    PolicyView,
    PromoteRequest,
    PromotionView,
    ValidateRequest,
)
from lora_contract.wire.jobs import JobView
from lora_contract.wire.signatures import SignatureList, SignatureView, SignRequest
from lora_reg.calls import Calls


class GateCalls(Calls):
    """One method per endpoint. References of datasets without a namespace get the caller's."""

    def validate(
        self,
        ref: str | Reference,
        *,
        data: Sequence[str] = (),
        general: Sequence[str] = (),
        precision: Precision | None = None,
    ) -> JobView:
        """Start a validation, or find it. precision: to load the base in; None: chosen by its size."""
        request = ValidateRequest(
            version=str(self.parse(ref)), data=self._full(data), general=self._full(general), precision=precision
        )
        return self._post("/validations", request, JobView)

    def policies(self, *, pattern: str | None = None) -> PolicyList:
        """The policies in force; with a pattern, all its versions, newest first."""
        return self._get("/policies", PolicyList, {"pattern": pattern})

    def set_policy(self, pattern: str, document: dict[str, Any] | None) -> PolicyView:
        """Set the policy of a pattern; document None removes it."""
        return self._put("/policies", PolicyRequest(pattern=pattern, document=document), PolicyView)

    def gate(
        self,
        ref: str | Reference,
        tag: str,
        *,
        data: Sequence[str] = (),
        document: dict[str, Any] | None = None,
        start: bool = True,
    ) -> GateView:
        """Decide whether a version may get a tag. document: a policy to try. start: run missing validations."""
        request = GateRequest(
            version=self.parse(ref).selector(), tag=tag, data=self._full(data), document=document, start=start
        )
        return self._post(f"{self._repository(ref)}/gates", request, GateView)

    def approve(self, ref: str | Reference, tag: str, *, reason: str = "") -> ApprovalView:
        request = ApproveRequest(version=self.parse(ref).selector(), tag=tag, reason=reason)
        return self._post(f"{self._repository(ref)}/approvals", request, ApprovalView)

    def promote(
        self,
        ref: str | Reference,
        tag: str,
        *,
        data: Sequence[str] = (),
        generation: int | None = None,
        force: bool = False,
        reason: str = "",
    ) -> PromotionView:
        """Gate a version and move the tag. generation: required of the tag; 0 if it is new. Raises `gate-refused`."""
        request = PromoteRequest(
            version=self.parse(ref).selector(),
            tag=tag,
            data=self._full(data),
            expect_generation=generation,
            force=force,
            reason=reason,
        )
        return self._post(f"{self._repository(ref)}/promotions", request, PromotionView)

    def add_signature(self, ref: str | Reference, envelope: Envelope, key: PublicKey) -> SignatureView:
        """Add a signature. Raises `signature-mismatch` if the key did not sign this version."""
        request = SignRequest(envelope=envelope, key=key.text)
        return self._post(f"{self._version(ref)}/signatures", request, SignatureView)

    def signatures(
        self, ref: str | Reference, *, key_id: str | None = None, signature_format: SignatureFormat | None = None
    ) -> Iterator[SignatureView]:
        """Signatures, oldest first. key_id, signature_format: only those of one key, in one format."""
        params: dict[str, str | int | None] = {"key": key_id, "format": signature_format}
        return self._pages(f"{self._version(ref)}/signatures", SignatureList, params, None)

    def _full(self, texts: Sequence[str]) -> list[str]:
        return [str(self.parse(text)) for text in texts]
