"""The pages: every path and link leads somewhere, the index names every page, no merge left its marks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate.markdown import anchor
from tests.support.command import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
MAPS = ("CONTRIBUTING.md", "docs/architecture.md")
PLACES = r"(?:client|registry|kernels|tests|docs|alembic|examples)/"


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    return {anchor(heading.replace("`", "")) for heading in re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)}


@pytest.mark.parametrize("name", MAPS)
def test_every_path_of_a_map_exists(name: str) -> None:
    paths = re.findall(rf"`({PLACES}[\w./-]*)`", (ROOT / name).read_text("utf-8"))
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_path_of_a_page_exists() -> None:
    missing = {
        f"{page.relative_to(ROOT)}: {path}"
        for page in PAGES
        for path in re.findall(rf"`({PLACES}[\w./-]*)`", page.read_text("utf-8"))
        if not (ROOT / path).exists()
    }
    assert missing == set()


def test_every_test_that_a_page_names_exists() -> None:
    missing, file, count = [], "", 0
    for path, name in re.findall(r"`(tests/[\w/.]+\.py)?(?:::(\w+))?`", (ROOT / "docs/threats.md").read_text("utf-8")):
        file = path or file
        count += bool(name)
        if name and f"\ndef {name}(" not in (ROOT / file).read_text("utf-8"):
            missing.append(f"{file}::{name}")
    assert count > 40
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_page_and_a_heading(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page))):
        if re.match(r"\w+:", target):
            continue
        path, _, fragment = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (fragment and fragment not in anchors(found)):
            broken.append(target)
    assert broken == []


def test_no_page_has_the_marks_of_a_merge() -> None:
    marked = [
        page for page in PAGES if re.search(r"^(<<<<<<<|=======$|>>>>>>>)", page.read_text("utf-8"), re.MULTILINE)
    ]
    assert marked == []


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    linked = {((ROOT / "docs") / target).resolve() for target in re.findall(r"\]\(([^)#]+)", index)}
    pages = {
        page for page in PAGES if "docs" in page.parts and "decisions" not in page.parts and page.name != "README.md"
    }
    assert {str(page.relative_to(ROOT)) for page in pages - linked} == set()
