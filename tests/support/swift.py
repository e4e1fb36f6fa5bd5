"""The configuration of a one-machine OpenStack Swift with the S3 API, one replica, no memcached."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Final

RINGS: Final = """
# Run by Swift's own Python: one process rather than nine calls of swift-ring-builder.
import json, sys
from swift.common.ring import RingBuilder
for kind, port in json.loads(sys.argv[1]).items():
    if kind != "proxy":
        builder = RingBuilder(6, 1, 0)
        builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "d1", "weight": 1.0})
        builder.rebalance()
        builder.get_ring().save(f"etc/{kind}.ring.gz")
"""

# No workers: a server that forks one would leave it behind when it is killed.
_COMMON: Final = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {folder}/etc
devices = {folder}/srv
mount_check = false
workers = 0
disable_fallocate = true
fallocate_reserve = 0
log_level = ERROR
"""

_BACKEND: Final = """
[pipeline:main]
pipeline = healthcheck {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
[filter:healthcheck]
use = egg:swift#healthcheck
"""

_PROXY: Final = """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats bulk s3api tempauth copy slo dlo symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
check_bucket_owner = false
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
"""

_FILTERS: Final = (
    "catch_errors",
    "gatekeeper",
    "healthcheck",
    "listing_formats",
    "bulk",
    "copy",
    "slo",
    "dlo",
    "symlink",
)


def write_configuration(folder: Path, ports: dict[str, int]) -> dict[str, Path]:
    """Write `folder`/etc; returns the file for each of proxy, account, container and object server."""
    etc = folder / "etc"
    etc.mkdir(parents=True)
    (etc / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = s\nswift_hash_path_prefix = p\n"
        "[storage-policy:0]\nname = default\ndefault = yes\n"
    )
    files = {}
    for kind, port in ports.items():
        text = _COMMON.format(port=port, user=getpass.getuser(), folder=folder)
        if kind == "proxy":
            text += _PROXY + "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in _FILTERS)
        else:
            text += _BACKEND.format(kind=kind)
        files[kind] = etc / f"{kind}-server.conf"
        files[kind].write_text(text)
    return files
