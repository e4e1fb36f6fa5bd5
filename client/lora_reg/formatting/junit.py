"""A decision as JUnit XML, which CI systems show as tests: a check is a test case.

The elements are those that Jenkins' and GitLab's readers take: testsuites, testsuite, testcase, failure, skipped.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from lora_contract.wire.gates import GateView
from lora_reg.formatting.gate import verdict
from lora_reg.formatting.text import clean


def junit(view: GateView) -> str:
    """The XML document. A missing check is a skipped test; a warning is output of a passed test."""
    counts = {state: sum(check.state == state for check in view.checks) for state in ("failed", "missing")}
    name = f"{view.namespace}/{view.name}:v{view.number} for {view.tag}"
    attributes = {
        "name": name, "tests": str(len(view.checks)), "failures": str(counts["failed"]),
        "skipped": str(counts["missing"]), "errors": "0",
    }  # fmt: skip
    suites = ET.Element("testsuites", {key: value for key, value in attributes.items() if key != "skipped"})
    suite = ET.SubElement(suites, "testsuite", attributes)
    for check in view.checks:
        case = ET.SubElement(suite, "testcase", {"classname": name, "name": clean(check.rule), "time": "0"})
        message = clean(check.message)
        if check.state == "failed":
            ET.SubElement(case, "failure", {"message": message}).text = message
        elif check.state == "missing":
            ET.SubElement(case, "skipped", {"message": message})
        else:
            ET.SubElement(case, "system-out").text = ("warning: " if check.state == "warned" else "") + message
    ET.SubElement(suite, "system-out").text = clean(verdict(view))
    ET.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suites, encoding="unicode")
