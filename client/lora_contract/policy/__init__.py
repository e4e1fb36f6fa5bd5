"""Policies: documents that state what a report must show before a tag may move, and the decision by one."""

from __future__ import annotations

from lora_contract.policy.decide import Check, Decision, GateFacts, decide
from lora_contract.policy.document import DEFAULT, Behaviour, Policy, parse_policy
from lora_contract.policy.pattern import canonical_pattern, governing, parse_pattern

__all__ = [
    "DEFAULT",
    "Behaviour",
    "Check",
    "Decision",
    "GateFacts",
    "Policy",
    "canonical_pattern",
    "decide",
    "governing",
    "parse_pattern",
    "parse_policy",
]
