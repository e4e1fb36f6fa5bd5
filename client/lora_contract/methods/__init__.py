"""Methods to compose adapters: the table that the command line, the API, the docs and the kernels use."""

from __future__ import annotations

from lora_contract.methods.parameters import Method, Parameter, Value
from lora_contract.methods.table import DEFAULT_METHOD, METHODS, check_parameters, find_method

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "Method",
    "Parameter",
    "Value",
    "check_parameters",
    "find_method",
]
