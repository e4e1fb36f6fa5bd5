"""The table of methods: what it takes, what it refuses, and the page that is written from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_contract.errors import RegistryError
from lora_contract.methods import DEFAULT_METHOD, METHODS, check_parameters, find_method
from lora_contract.methods.page import methods_page

ROOT = Path(__file__).resolve().parents[3]


def test_defaults_are_filled_in_and_in_range() -> None:
    for name, method in METHODS.items():
        filled = check_parameters(name, {})
        assert list(filled) == [parameter.name for parameter in method.parameters]
        assert check_parameters(name, filled) == filled
        assert all(
            value is not None or p.otherwise for p, value in zip(method.parameters, filled.values(), strict=True)
        )
    assert check_parameters(DEFAULT_METHOD, {"rank": 8}) == {"rank": 8, "clamp": None}
    assert check_parameters("ties", {"density": 1}) == {"density": 1.0, "majority_sign_method": "total"}


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("ties", {"density": 0}, "density .* is 0; expected a number above 0 and at most 1"),
        ("ties", {"density": 1.01}, "at most 1"),
        ("ties", {"density": float("nan")}, "nan"),
        ("ties", {"density": None}, "None"),
        ("ties", {"density": "0.5"}, "'0.5'"),
        ("ties", {"density": True}, "True"),
        ("ties", {"majority_sign_method": "mean"}, "`total` or `frequency`"),
        ("svd", {"rank": 0}, "an integer at least 1"),
        ("svd", {"rank": 8.0}, "8.0"),
        ("svd", {"density": 0.5}, "no parameter 'density'; it has rank, clamp"),
        ("cat", {"rank": 3}, "it has none"),
        ("iso_c", {"scaling": float("inf")}, "inf"),
        ("della", {"density": 0.95, "epsilon": 0.2}, "exceeds the range"),
        ("della", {"density": 0.1, "epsilon": 0.2}, "exceeds the range"),
        ("breadcrumbs", {"density": 0.995, "gamma": 0.01}, "more than 1"),
        ("slerp", {}, "No such method: 'slerp'; expected one of svd, cat"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(method: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(RegistryError, match=message) as caught:
        check_parameters(method, given)
    assert caught.value.code == "invalid-request" and caught.value.facts["method"] == method


def test_schema_of_the_parameters() -> None:
    assert find_method("ties").schema() == {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "density": {
                "type": "number",
                "description": "fraction of the elements of each tensor to keep, by largest magnitude",
                "default": 0.2,
                "exclusiveMinimum": 0.0,
                "maximum": 1.0,
            },
            "majority_sign_method": {
                "type": "string",
                "description": "how the sign of an element is elected: by the sum of the values, or by the count of signs",
                "default": "total",
                "enum": ["total", "frequency"],
            },
        },
    }
    assert find_method("svd").schema()["properties"]["rank"]["type"] == ["integer", "null"]


def test_the_page_is_written_from_the_table() -> None:
    written = (ROOT / "docs/methods.md").read_text("utf-8")
    assert written == methods_page(), "run `make docs` and commit"
    assert all(f"\n## {name}\n" in written for name in METHODS)
