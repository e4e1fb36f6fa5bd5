"""A decision as JUnit XML, which CI systems show as tests: a check is a test case.

The elements are those that Jenkins' and GitLab's readers take: testsuites, testsuite, testcase, failure, skipped.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from lora_reg.cli.text import clean
from lora_reg.gates.text import verdict
from lora_reg.spec.wire.gates import GateView


def junit(view: GateView) -> str:
    """The document. missing: a failure too, for the gate is not passed; a warning is told as output."""
    counts = {state: sum(check.state == state for check in view.checks) for state in ("failed", "missing")}
    name = f"{view.namespace}/{view.name}:v{view.number} for {view.tag}"
    attributes = {
        "name": name, "tests": str(len(view.checks)), "failures": str(counts["failed"]),
        "skipped": str(counts["missing"]), "errors": "0",
    }  # fmt: skip
    suites = Element("testsuites", {key: value for key, value in attributes.items() if key != "skipped"})
    suite = SubElement(suites, "testsuite", attributes)
    for check in view.checks:
        case = SubElement(suite, "testcase", {"classname": name, "name": clean(check.rule), "time": "0"})
        message = clean(check.message)
        if check.state == "failed":
            SubElement(case, "failure", {"message": message}).text = message
        elif check.state == "missing":
            SubElement(case, "skipped", {"message": message})
        else:
            SubElement(case, "system-out").text = ("warning: " if check.state == "warned" else "") + message
    SubElement(suite, "system-out").text = clean(verdict(view))
    indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(suites, encoding="unicode")
