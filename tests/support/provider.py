"""A real OpenID provider (npm `oidc-provider`) on this machine, and a person who signs in there with a browser."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx

from tests.support import processes
from tests.support.node import ensure_packages

PACKAGE = "oidc-provider@9.13.3"
CLIENT_ID = "lora-reg"
SCOPES = "openid profile"
SCRIPT = Path(__file__).with_suffix(".mjs")


@contextmanager
def provider(folder: Path) -> Iterator[str]:
    """The URL of a provider that runs for the length of a block."""
    home = ensure_packages("oidc-provider", [PACKAGE])
    log = folder / "provider.log"
    program = home / SCRIPT.name
    # Node looks for packages beside the program.
    program.write_text(SCRIPT.read_text())
    process = processes.start(["node", str(program)], log=log)
    try:
        processes.wait_until(lambda: "ready " in log.read_text(), what="the OpenID provider", log=log)
        yield next(line for line in log.read_text().splitlines() if line.startswith("ready ")).split()[1]
    finally:
        processes.stop(process)


def visit(url: str, account: str) -> str:
    """Sign in as a person does: fill in each form of the provider until it leads away or ends. Returns the last page.

    A page of the device flow that carries the code is a form as well.
    """
    home = urlsplit(url).netloc
    with httpx.Client(timeout=20, follow_redirects=False) as browser:
        answer = browser.get(url)
        for _ in range(20):
            if answer.is_redirect:
                url = urljoin(url, answer.headers["location"])
                answer = browser.get(url)
                if urlsplit(url).netloc != home:
                    return answer.text
                continue
            form = re.search(r"<form[^>]*action=\"([^\"]+)\"", answer.text)
            if form is None:
                return answer.text
            fields = dict(re.findall(r"<input[^>]*name=\"([^\"]+)\"[^>]*value=\"([^\"]*)\"", answer.text))
            if 'name="login"' in answer.text:
                fields |= {"login": account, "password": "x"}
            url = urljoin(url, html.unescape(form[1]))
            answer = browser.post(url, data={name: html.unescape(value) for name, value in fields.items()})
        raise AssertionError(f"the sign-in does not end:\n{answer.text}")
