from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry.blobs.places import LocalPlace, Place, S3Place


@pytest.fixture(params=["local", "ministack-http", "ministack-https", "swift-http", "swift-https"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty store; the test fails where it leaves anything behind but blobs."""
    kind, _, scheme = request.param.partition("-")
    made: Place
    if kind == "local":
        made = LocalPlace(tmp_path / "store")
    else:
        server = request.getfixturevalue(f"{kind}_server")
        many = 1050 if request.param == "ministack-http" else 30
        made = S3Place(server, prefix=f"t/{uuid.uuid4().hex}", tls=scheme == "https", many=many)
    yield made
    assert made.leftovers() == []
