import gc
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest

# A run starts hundreds of processes of ours: compiled once, each begins a quarter of a second sooner.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

pytest_plugins = ["tests.support.postgres", "tests.support.s3_fixtures"]

# CI tries the same examples every time, so that a red run is about the change; elsewhere new ones are tried.
hypothesis.settings.register_profile("ci", derandomize=True, database=None)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

# Most workers of the tests run no validation.
os.environ.setdefault("LORA_REG_PRELOAD", "false")

# Temporary folders in memory, if there is room: what the service and the kernels write is synced to a disk thousands of
# times, which these tests, that kill processes and not the machine, cannot notice.
MEMORY = Path("/dev/shm")


def fits(folder: Path) -> bool:
    """Whether a folder has room for a run, and takes the extended attributes that Swift writes."""
    if not folder.is_dir() or shutil.disk_usage(folder).free < 8 << 30:
        return False
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        try:
            os.setxattr(probe.name, "user.probe", b"1")
        except OSError:
            return False
    return True


if "TMPDIR" not in os.environ and fits(MEMORY):
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)

# A shell that starts this in the background without job control has SIGINT ignored, in all that is started here too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# bitsandbytes compiles some functions for its CPU with inductor, in 20 s, and calls them as they are if it cannot: the
# same bits at once.
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")

# Compiled kernels, by the digest of their source: with the checkout rather than with the user.
os.environ.setdefault("TRITON_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".cache" / "triton"))


# Collecting imports all of torch, transformers and PEFT, and makes no garbage.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()  # later collections do not visit what has been imported
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="Only what needs no server, no worker and no trained model.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from tests.support.order import fast, rank

    items.sort(key=lambda item: rank(item.nodeid))
    if config.getoption("fast"):
        kept = [item for item in items if fast(item.nodeid, worker=item.get_closest_marker("worker") is not None)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from tests.support.order import ByUnit

    return ByUnit(config, log)
