"""Pages of an attacker in a real Chromium, against a registry without login: nothing is changed and nothing is read."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from tests.registry.site import open_site
from tests.support.browser import run_in_browser

SCRIPT = Path(__file__).with_name("hostile_pages.py")


def test_no_page_of_another_origin_changes_or_reads_anything(tmp_path: Path) -> None:
    with open_site("sqlite", tmp_path / "data", "") as site:
        site.serve()
        site.need_base()
        path = site.repository(versions=2)
        for target in ("v2", "v1"):
            assert site.client.put(f"{path}/tags/prod", json={"target": target}).status_code == 200
        before = site.client.get(f"{path}/history").json()
        found = run_in_browser(SCRIPT, registry=site.url, repository=path, port=urlsplit(site.url).port)
        assert site.client.get(f"{path}/history").json() == before
        assert site.client.get(f"{path}/versions/v1").status_code == 200
    # What a browser sends without asking arrives, and is refused; what it asks about first is not sent at all.
    assert found["cross-site"] == {
        "rollback": "opaque 0",
        "promote": "opaque 0",
        "beacon": "opaque 0",
        "json": "blocked",
        "delete": "blocked",
        "read": "blocked",
    }
    assert '"code":"forbidden"' in found["form"]
    refused = {status for what, status in found["rebound"].items() if what != "page"}
    assert refused == {403}, found["rebound"]
