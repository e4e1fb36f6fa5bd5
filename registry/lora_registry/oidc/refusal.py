"""Why an identity token is refused: a reason for the log, and at most a sentence for whoever sent it."""

from __future__ import annotations

from typing import Final

ACCEPTED_BY_NONE: Final = "No trust rule accepts the identity token."


class RefusedTokenError(Exception):
    """A token that is not accepted.

    Args:
        reason: for the service's log. It may name rules and what they expect, never the token.
        public: for the sender. The default tells nothing of issuers, rules or keys; anything else may only repeat what
            the token itself says.
    """

    def __init__(self, reason: str, *, public: str = ACCEPTED_BY_NONE) -> None:
        super().__init__(reason)
        self.reason = reason
        self.public = public
