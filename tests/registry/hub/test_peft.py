from __future__ import annotations

import sys
from pathlib import Path

from tests.registry.hub.clients import run
from tests.registry.hub.conftest import World


def test_peft_loads_the_same_model_as_from_folders(world: World, tmp_path: Path) -> None:
    arguments = {
        "base": str(world.testbed / "base"),
        "adapter": str(world.testbed / "adapters" / "lora-r8-qv-python"),
        "repo": "hub/python",
    }
    seen = run(sys.executable, "peft_session.py", arguments, endpoint=world.hub, home=tmp_path)
    assert seen == dict.fromkeys(
        ["adapter_matters", "by_tag", "by_alias", "remote_base", "remote_both", "auto", "tokenizer"], True
    )
