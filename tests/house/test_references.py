"""The reference pages are what the code says."""

from __future__ import annotations

import subprocess
import sys

from docs.generate.__main__ import PAGES
from tests.support.command import ROOT


def test_the_reference_pages_are_up_to_date() -> None:
    """In a process of its own: the pages are made of imports, and no test may have changed what is imported."""
    command = [sys.executable, "-m", "docs.generate", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `make docs` and commit: {done.stdout}{done.stderr}"


def test_the_reference_pages_cover_every_command_route_name_and_code() -> None:
    from docs.generate.rest import schema
    from lora_contract.errors import ERRORS
    from lora_reg import __all__ as names
    from lora_reg.cli.main import COMMANDS

    cli, rest, python, errors = (
        (ROOT / f"docs/reference/{page}.md").read_text("utf-8") for page in ("cli", "rest", "python", "errors")
    )
    assert {name for name in COMMANDS if f"\n### lora-reg {name}\n" not in cli} == set()
    routes = {f"{method.upper()} {path}" for path, methods in schema()["paths"].items() for method in methods}
    assert {route for route in routes if f"\n### {route}\n" not in rest} == set()
    assert {name for name in names if name != "__version__" and f"\n## {name}\n" not in python} == set()
    assert {code for code in ERRORS if f"| `{code}` |" not in errors} == set()


def test_every_generated_page_says_so() -> None:
    for name in PAGES:
        assert "make docs" in (ROOT / "docs" / name).read_text("utf-8"), name
