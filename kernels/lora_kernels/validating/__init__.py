"""Validate an adapter on its pinned base, with the libraries that its users load it with.

`validate` takes folders and returns a report. It loads torch, transformers and PEFT into a process that should not
serve or merge anything afterwards: an adapter is untrusted until it has passed.
"""

from __future__ import annotations

from lora_kernels.validating.subject import EvaluationSet, Subject
from lora_kernels.validating.suite import validate

__all__ = ["EvaluationSet", "Subject", "validate"]
