from __future__ import annotations

from pathlib import Path

import pytest

from lora_contract.base import BaseFingerprint
from tests.support import adapters


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    return adapters.make_base(tmp_path_factory.mktemp("base"), layers=3, shards=2)


@pytest.fixture(scope="session")
def base(base_folder) -> BaseFingerprint:
    return adapters.fingerprint_of(base_folder)
