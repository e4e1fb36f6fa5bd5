"""Validation of an adapter on its pinned base, with the libraries that users load it with.

`validate` takes folders and returns a report. It loads torch, transformers and PEFT. Its process should not serve or
merge anything afterwards: an adapter is untrusted until it has passed.
"""

from __future__ import annotations

from lora_kernels.validating.base_losses import BaseLosses
from lora_kernels.validating.subject import EvaluationSet, Subject
from lora_kernels.validating.suite import validate

__all__ = ["BaseLosses", "EvaluationSet", "Subject", "validate"]
