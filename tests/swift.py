"""A real OpenStack Swift, all in one: proxy, account, container and object server on loopback, one copy of everything.

From Debian's packages, which run under Debian's own Python. There is no memcached: tempauth wants a cache, and a few lines in
the proxy's one process are enough of one (`ONE_CACHE`).
"""

from __future__ import annotations

import getpass
import json
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from stores.backends.swift_segments import SEGMENTS
from stores.secret import Secret
from stores.to import SwiftTO
from tests.secret_scan import register_secret
from tests.servers import WAIT_S, http_ok, running, seaweed_ports, wait_for

SERVERS = ("account", "container", "object")

SWIFT_CONF = """
[swift-hash]
swift_hash_path_prefix = x
swift_hash_path_suffix = x
"""

# Logs go to a port where nobody listens: there is no syslog.
COMMON = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {dir}/etc
workers = 0
log_udp_host = 127.0.0.1
log_udp_port = 9
"""

STORAGE_CONF = """
devices = {dir}/devices
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
recon_cache_path = {dir}/run
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
[{name}-replicator]
"""

FILTERS = ("catch_errors", "healthcheck", "listing_formats", "tempauth", "copy", "container_quotas", "account_quotas")
PROXY_CONF = """
[pipeline:main]
pipeline = catch_errors healthcheck cache listing_formats tempauth copy container_quotas account_quotas slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
# Storage servers that were asked before they were there are otherwise not asked again for a minute.
error_suppression_interval = 0
[filter:cache]
paste.filter_factory = one_cache:filter_factory
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {key} .admin
user_test_guest = {key}
user_test_reseller = {key} .reseller_admin
[filter:slo]
use = egg:swift#slo
max_manifest_segments = {segments}
[filter:dlo]
use = egg:swift#dlo
"""

ONE_CACHE = '''
"""Stands in for memcached in a proxy that is one process."""
import time


class Cache:
    def __init__(self):
        self.kept = {}

    def get(self, key, raise_on_error=False, **more):
        value, until = self.kept.get(key, (None, 0))
        if until and until < time.time():
            del self.kept[key]
            return None
        return value

    def set(self, key, value, serialize=True, time=0, **more):
        self.kept[key] = value, (now() + time if time else 0)

    def incr(self, key, delta=1, time=0, **more):
        value = max(0, int(self.get(key) or 0) + int(delta))
        self.set(key, value, time=time)
        return value

    def decr(self, key, delta=1, time=0, **more):
        return self.incr(key, -int(delta), time)

    def delete(self, key, **more):
        self.kept.pop(key, None)


now = time.time


def filter_factory(conf, **more):
    cache = Cache()

    def wrap(app):
        def call(environ, start_response):
            environ["swift.cache"] = cache
            if environ["PATH_INFO"] == "/forget-tokens":
                cache.kept.clear()
                start_response("200 OK", [("Content-Length", "0")])
                return [b""]
            return app(environ, start_response)
        return call
    return wrap
'''

# One process for all rings: the tool would be started nine times.
RINGS = """
import sys
from swift.common.ring import RingBuilder

folder, *ports = sys.argv[1:]
for name, port in zip(("account", "container", "object"), ports):
    builder = RingBuilder(2, 1, 0)
    builder.add_dev(dict(id=0, region=1, zone=1, ip="127.0.0.1", port=int(port), device="d1", weight=1, meta="",
                         replication_ip="127.0.0.1", replication_port=int(port)))
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{name}.ring.gz")
"""


@dataclass(frozen=True)
class SwiftServer:
    port: int
    key: str
    pid: int
    """Of the proxy server."""

    @property
    def auth_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/auth/v1.0"

    def to(self, container: str, *, port: int | None = None, **fields: object) -> SwiftTO:
        """The container, by whatever listens on `port` before the server."""
        given = {
            "url": f"http://127.0.0.1:{port or self.port}/auth/v1.0",
            "account": "test",
            "userName": "tester",
            "key": Secret(self.key),
            "container": container,
        }
        return SwiftTO.model_validate({**given, **fields})

    def forget_tokens(self) -> None:
        """All that it has given out are worth nothing any more."""
        urllib.request.urlopen(f"http://127.0.0.1:{self.port}/forget-tokens", timeout=5).close()


@contextmanager
def run_swift(directory: Path, *, segments: int = 1000) -> Iterator[SwiftServer]:
    """`segments`: how many a manifest may name."""
    for name in ("etc", "devices/d1", "run", "python"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    etc, ports = directory / "etc", seaweed_ports()[:4]  # beyond the kernel's own choice: the rings take a second
    key = register_secret("swift-" + uuid.uuid4().hex, "key of a Swift user")
    (etc / "swift.conf").write_text(SWIFT_CONF)
    (directory / "python" / "one_cache.py").write_text(ONE_CACHE)
    filters = "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in FILTERS if name != "tempauth")
    for name, port in zip((*SERVERS, "proxy"), ports, strict=True):
        more = PROXY_CONF + filters if name == "proxy" else STORAGE_CONF
        text = (COMMON + more).format(
            port=port, user=getpass.getuser(), dir=directory, name=name, key=key, segments=segments
        )
        (etc / f"{name}.conf").write_text(text)
    subprocess.run(["/usr/bin/python3", "-c", RINGS, str(etc), *map(str, ports)], check=True, capture_output=True)
    with ExitStack() as stack:
        for name in (*SERVERS, "proxy"):
            log = directory / f"{name}.log"
            argv = [
                "env",
                f"PYTHONPATH={directory / 'python'}",
                f"/usr/bin/swift-{name}-server",
                str(etc / f"{name}.conf"),
            ]
            process = stack.enter_context(running(argv, log))
        wait_for(lambda: http_ok(f"http://127.0.0.1:{ports[3]}/healthcheck"), process, log)
        server = SwiftServer(ports[3], key, process.pid)
        wait_for(lambda: _gives_tokens(server), process, log)
        container = Container(server, "ready")
        wait_for(lambda: container.ask("PUT") and container.ask("PUT", "ready", b"x")[0] == 201, process, log)
        yield server


class Container:
    """A container, past the store under test: by requests of urllib's."""

    def __init__(self, server: SwiftServer, name: str) -> None:
        self.name = name
        self.server = server
        self.log_in()
        self.ask("PUT")

    def log_in(self) -> None:
        """Anew: tests have tokens forgotten."""
        login = urllib.request.Request(
            self.server.auth_url, headers={"X-Auth-User": "test:tester", "X-Auth-Key": self.server.key}
        )
        with urllib.request.urlopen(login, timeout=WAIT_S) as answer:
            self.account, self.token = answer.headers["X-Storage-Url"], answer.headers["X-Auth-Token"]

    def ask(
        self, method: str, ref: str | None = None, body: bytes | None = None, *, query: str = "", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; underscores in names of headers are dashes."""
        path = quote(self.name) + ("" if ref is None else f"/{quote(ref)}")
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            f"{self.account}/{path}{query}", method=method, data=body, headers={"X-Auth-Token": self.token, **given}
        )
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    def put(self, ref: str, data: bytes) -> None:
        status, _, _ = self.ask("PUT", ref, data, Content_Type="application/octet-stream")
        assert status == 201, status

    def get(self, ref: str) -> bytes | None:
        status, _, body = self.ask("GET", ref)
        assert status in (200, 404), status
        return body if status == 200 else None

    def names(self) -> set[str]:
        """Every object, segments included."""
        return {entry["name"] for entry in json.loads(self.ask("GET", query="?format=json")[2])}

    def segments(self) -> set[str]:
        return {name for name in self.names() if name.startswith(f"{SEGMENTS}/")}

    def empty(self) -> None:
        for name in self.names():
            self.ask("DELETE", name)


def _gives_tokens(server: SwiftServer) -> bool:
    request = urllib.request.Request(server.auth_url, headers={"X-Auth-User": "test:tester", "X-Auth-Key": server.key})
    with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=5) as answer:
        return bool(answer.headers.get("X-Auth-Token"))
    return False


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    with run_swift(tmp_path_factory.mktemp("swift")) as server:
        yield server
