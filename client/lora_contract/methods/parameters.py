"""Data types of a method and its parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from lora_contract.errors import RegistryError

Value = float | int | str | None


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of a method.

    Args:
        meaning: a noun phrase for the documentation.
        default: None if the method derives the value, as `otherwise` says.
        otherwise: the default in words, for a default of None.
        low, high: the range; None for no limit.
        above: the value must be greater than `low`.
        choices: allowed values of a `choice`.
    """

    name: str
    kind: Literal["number", "integer", "choice"]
    meaning: str
    default: Value = None
    otherwise: str = ""
    low: float | None = None
    high: float | None = None
    above: bool = False
    choices: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The allowed values, in words."""
        if self.kind == "choice":
            return " or ".join(f"`{choice}`" for choice in self.choices)
        noun = "an integer" if self.kind == "integer" else "a number"
        low = None if self.low is None else f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        high = None if self.high is None else f"at most {self.high:g}"
        return " ".join(filter(None, [noun, " and ".join(filter(None, [low, high]))]))

    def check(self, value: Any, method: str) -> Value:
        """Validate and convert a value. Raises RegistryError `invalid-request`."""
        if value is None and self.default is None:
            return None
        if not self._fits(value):
            raise RegistryError(
                "invalid-request",
                f"The parameter {self.name} of the method {method} is {value!r:.80}; expected {self.range}.",
                parameter=self.name,
                method=method,
            )
        checked: Value = float(value) if self.kind == "number" else value
        return checked

    def schema(self) -> dict[str, Any]:
        """The JSON schema of the parameter."""
        meaning = self.meaning + (f" (default: {self.otherwise})" if self.otherwise else "")
        schema: dict[str, Any] = {"description": meaning, "default": self.default}
        if self.kind == "choice":
            return {**schema, "type": "string", "enum": list(self.choices)}
        schema["type"] = self.kind if self.default is not None else [self.kind, "null"]
        if self.low is not None:
            schema["exclusiveMinimum" if self.above else "minimum"] = self.low
        if self.high is not None:
            schema["maximum"] = self.high
        return schema

    def _fits(self, value: Any) -> bool:
        if self.kind == "choice":
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int if self.kind == "integer" else (int, float)):
            return False
        if self.low is not None and (value < self.low or (self.above and value == self.low)):
            return False
        if self.high is not None and value > self.high:
            return False
        return math.isfinite(value)


class Method(msgspec.Struct, frozen=True):
    """A method to compose adapters.

    Args:
        summary: a description of the computation.
        source: the paper or project that defined the method.
        version: part of every recipe; incremented when the same inputs give other numbers.
        seeded: the method draws random numbers, so the seed matters.
        peft: PEFT's `add_weighted_adapter` has a combination_type of this name.
        dense: it works on the elements of the updates, which a GPU computes as well.
    """

    name: str
    summary: str
    source: str
    parameters: tuple[Parameter, ...] = ()
    version: int = 1
    seeded: bool = False
    peft: bool = False
    dense: bool = False

    def checked(self, given: Mapping[str, Any]) -> dict[str, Value]:
        """Validate parameters and fill in defaults, in the order of the table. Raises RegistryError
        `invalid-request`."""
        known = [parameter.name for parameter in self.parameters]
        for name in sorted(given):
            if name not in known:
                raise RegistryError(
                    "invalid-request",
                    f"The method {self.name} has no parameter {name!r:.80}; it has {', '.join(known) or 'none'}.",
                    parameter=name,
                    method=self.name,
                )
        return {
            parameter.name: parameter.check(given.get(parameter.name, parameter.default), self.name)
            for parameter in self.parameters
        }

    def schema(self) -> dict[str, Any]:
        """The JSON schema of the object of its parameters."""
        properties = {parameter.name: parameter.schema() for parameter in self.parameters}
        return {"type": "object", "properties": properties, "additionalProperties": False}
