"""Processor seconds of the tests by file, user and system, children included once they were waited for.

A plugin, off by default: `pytest -p tests.support.cost …` prints the dearest files and tests at the end. Wall time says
little on a machine that does other things too.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator
from typing import Any

import pytest

_spent: dict[str, float] = defaultdict(float)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    before = sum(os.times()[:4])
    try:
        return (yield)
    finally:
        _spent[item.nodeid] += sum(os.times()[:4]) - before


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    files: dict[str, float] = defaultdict(float)
    for test, seconds in _spent.items():
        files[test.partition("::")[0]] += seconds
    total = sum(os.times()[:4])
    terminalreporter.section(f"processor seconds: {total:.1f}, of which in tests {sum(files.values()):.1f}")
    for name, seconds in sorted(files.items(), key=lambda pair: -pair[1]):
        terminalreporter.write_line(f"{seconds:8.1f} {name}")
    for name, seconds in sorted(_spent.items(), key=lambda pair: -pair[1])[:25]:
        terminalreporter.write_line(f"{seconds:8.1f} {name}")
