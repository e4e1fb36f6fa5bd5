from __future__ import annotations

import os
import subprocess
import sys
import time

from sqlmodel import Session

from lora_registry.db.tables import Version
from lora_registry.gates import validations
from lora_registry.jobs import queues
from lora_registry.jobs.engine import lease_store as store
from lora_registry.runtime import faults
from tests.registry.jobs.engine.conftest import ROOT, Site


def _claim(site: Site, executor: str, instance: str, *, lease: float = 30.0, queues: str = "cpu") -> bool:
    return store.claim(
        site.database, executor_id=executor, instance=instance, host="h", queues=queues, lease_seconds=lease
    )


def test_a_live_lease_is_refused_to_others_and_renewed_by_its_holder(site: Site) -> None:
    assert _claim(site, "w", "one")
    assert not _claim(site, "w", "two")
    assert _claim(site, "w", "one")
    assert store.beat(site.database, executor_id="w", instance="one")
    assert not store.beat(site.database, executor_id="w", instance="two")
    assert store.drop_expired(site.database, exclude="other") == []
    assert store.holders(site.database) == {"w"}


def test_an_expired_lease_is_taken_and_its_holder_learns_it(site: Site) -> None:
    assert _claim(site, "w", "one", lease=0.2)
    time.sleep(0.4)
    assert _claim(site, "w", "two")
    assert not store.beat(site.database, executor_id="w", instance="one")


def test_expired_leases_are_dropped_but_not_ones_own(site: Site) -> None:
    assert _claim(site, "dead", "one", lease=0.2)
    assert _claim(site, "slow", "two", lease=0.2)
    assert _claim(site, "live", "three")
    time.sleep(0.4)
    assert store.drop_expired(site.database, exclude="slow") == ["dead"]
    assert store.holders(site.database) == {"slow", "live"}
    assert store.beat(site.database, executor_id="slow", instance="two")
    assert store.drop_expired(site.database, exclude="live") == []
    assert not store.beat(site.database, executor_id="dead", instance="one")


def test_a_worker_frozen_while_it_renews_its_lease_holds_nobody_up(site: Site) -> None:
    program = (
        "import sys\n"
        "from lora_registry.db.engine import make_engine\n"
        "from lora_registry.jobs.engine import lease_store as store\n"
        "engine = make_engine(sys.argv[1])\n"
        "store.claim(engine, executor_id='w', instance='one', host='h', queues='cpu', lease_seconds=0.2)\n"
        "store.beat(engine, executor_id='w', instance='one')\n"
    )
    fault = {faults.ENV: "jobs.lease.renewed@stop"}
    frozen = subprocess.Popen([sys.executable, "-c", program, site.url], cwd=ROOT, env=os.environ | fault)
    try:
        assert os.WIFSTOPPED(os.waitpid(frozen.pid, os.WUNTRACED)[1])
        # With its row locked, PostgreSQL would give it up after a minute, and SQLite never.
        assert site.until(lambda: store.drop_expired(site.database, exclude="other") == ["w"]) < 10.0
    finally:
        frozen.kill()
        frozen.wait()


def test_a_released_lease_is_free_at_once(site: Site) -> None:
    assert _claim(site, "w", "one")
    store.release(site.database, executor_id="w", instance="two")
    assert store.holders(site.database) == {"w"}
    store.release(site.database, executor_id="w", instance="one")
    assert store.holders(site.database) == set()
    assert _claim(site, "w", "two")


def test_queues_are_served_by_those_who_live(site: Site) -> None:
    assert _claim(site, "dead", "one", lease=0.2, queues="gpu")
    assert _claim(site, "live", "two", queues="gpu,cpu")
    time.sleep(0.4)
    with Session(site.database) as session:
        assert store.served_queues(session) == {"gpu", "cpu"}


def test_a_large_base_is_run_where_there_are_gpus(site: Site) -> None:
    small, large = (Version(size=size) for size in (queues.SMALL_BASE, queues.SMALL_BASE + 1))
    with Session(site.database) as session:
        assert [validations.queue(session, base) for base in (small, large)] == ["cpu", "cpu"]
    assert _claim(site, "w", "one", queues="cpu,gpu")
    with Session(site.database) as session:
        assert [validations.queue(session, base) for base in (small, large)] == ["cpu", "gpu"]
