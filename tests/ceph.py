"""A real Ceph on loopback: one monitor, one OSD that keeps everything in memory, and radosgw beside them where it is wanted.

From Debian's packages.
"""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from stores.secret import Secret
from stores.to import PrimaryDataStoreTO
from tests.secret_scan import register_secret
from tests.servers import WAIT_S, S3Server, free_ports, http_ok, running, wait_for

CONF = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
ms bind ipv6 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {dir}/keyring
run dir = {dir}/run
admin socket = {dir}/run/$name.asok
pid file = {dir}/run/$name.pid
log file = {dir}/run/$name.log
crash dir = {dir}/run
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
auth allow insecure global id reclaim = false
[mon]
mon data = {dir}/mon
mon allow pool delete = true
mon cluster log file = {dir}/run/cluster.log
mon data avail crit = 1
mon data avail warn = 2
# Otherwise every new pool waits a second or two.
paxos propose interval = 0.05
paxos min wait = 0.01
[mgr]
mgr data = {dir}/mgr
mgr initial modules =
mgr stats period = 1
mgr tick period = 1
[osd]
osd data = {dir}/osd
osd objectstore = memstore
memstore device bytes = 17179869184
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{rgw}
rgw swift account in url = true
"""


@dataclass(frozen=True)
class Ceph:
    """`key` is that of the user `vm`, who may do with RBD whatever a hypervisor has to."""

    directory: Path
    port: int
    rgw: int
    key: str

    @property
    def conf(self) -> Path:
        return self.directory / "ceph.conf"

    def tool(self, *argv: str, data: bytes | None = None) -> bytes:
        """What a tool of Ceph's says, as the cluster's administrator."""
        ran = subprocess.run([argv[0], "-c", str(self.conf), *argv[1:]], input=data, capture_output=True, timeout=60)
        assert ran.returncode == 0, ran.stderr.decode(errors="replace")
        return ran.stdout

    def new_pool(self) -> str:
        name = f"p-{uuid.uuid4().hex[:8]}"
        self.tool("ceph", "osd", "pool", "create", name, "8")
        self.tool("ceph", "osd", "pool", "application", "enable", name, "rbd")
        return name

    def wait_for_statistics(self, pool: str) -> None:
        """Which a new pool has after a second or two."""
        deadline = time.monotonic() + WAIT_S
        while not any(
            each["name"] == pool for each in json.loads(self.tool("ceph", "df", "--format", "json"))["pools"]
        ):
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def remove_pool(self, name: str) -> None:
        self.tool("ceph", "osd", "pool", "rm", name, name, "--yes-i-really-really-mean-it")

    def to(self, pool: str, *, port: int | None = None, key: str | None = None) -> PrimaryDataStoreTO:
        """The pool as CloudStack has it, by whatever listens on `port` before the monitor."""
        details = {"user": Secret("vm"), "secret": Secret(self.key if key is None else key)}
        return PrimaryDataStoreTO(
            uuid=pool, poolType="RBD", host="127.0.0.1", port=port or self.port, path=pool, details=details
        )

    def images(self, pool: str) -> set[str]:
        return set(json.loads(self.tool("rbd", "ls", "--format", "json", pool)))

    def objects(self, pool: str) -> set[str]:
        """Names of everything in the pool that is no part of an image."""
        found = self.tool("rados", "-p", pool, "--all", "ls").decode().splitlines()
        return {line.split("\t")[-1] for line in found if not line.split("\t")[-1].startswith("rbd_")}

    def content(self, spec: str) -> bytes:
        """Of an image or snapshot."""
        return self.tool("rbd", "export", "--no-progress", spec, "-")


@contextmanager
def run_ceph(directory: Path) -> Iterator[Ceph]:
    for name in ("run", "mon", "mgr", "osd"):
        (directory / name).mkdir()
    v2, v1, rgw = free_ports(3)
    fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
    conf, keyring = directory / "ceph.conf", str(directory / "keyring")
    conf.write_text(CONF.format(dir=directory, fsid=fsid, v2=v2, v1=v1, rgw=rgw))
    everything = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
    _made("ceph-authtool", "-C", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    _made("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *everything)
    storage = ["--cap", "mon", "allow profile osd", "--cap", "osd", "allow *", "--cap", "mgr", "allow profile osd"]
    _made("ceph-authtool", keyring, "--gen-key", "-n", "osd.0", *storage)
    manager = ["--cap", "mon", "allow profile mgr", "--cap", "osd", "allow *"]
    _made("ceph-authtool", keyring, "--gen-key", "-n", "mgr.x", *manager)
    monmap = str(directory / "monmap")
    address = f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"
    _made("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
    told = ["-c", str(conf)]
    _made("ceph-mon", *told, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
    with ExitStack() as stack:
        stack.enter_context(running(["ceph-mon", *told, "-i", "a", "-f"], directory / "mon.log"))
        _made("timeout", "30", "ceph", *told, "-s")  # waits for the monitor
        stack.enter_context(running(["ceph-mgr", *told, "-i", "x", "-f"], directory / "mgr.log"))
        secret = _made("ceph-authtool", "-p", "-n", "osd.0", keyring).decode().strip()
        (directory / "osd.json").write_text(json.dumps({"cephx_secret": secret}))
        _made("ceph", *told, "osd", "new", osd, "0", "-i", str(directory / "osd.json"))
        _made("ceph-osd", *told, "-i", "0", "--mkfs", "--osd-uuid", osd, "--keyring", keyring)
        log = directory / "osd.log"
        process = stack.enter_context(running(["ceph-osd", *told, "-i", "0", "-f"], log))
        wait_for(lambda: b"1 up" in _made("ceph", *told, "osd", "stat"), process, log)
        caps = ["mon", "profile rbd", "osd", "profile rbd"]
        _made("ceph", *told, "auth", "get-or-create", "client.vm", *caps)
        key = _made("ceph", *told, "auth", "print-key", "client.vm").decode().strip()
        yield Ceph(directory, v1, rgw, register_secret(key, "key of a Ceph user"))


@contextmanager
def run_radosgw(ceph: Ceph) -> Iterator[S3Server]:
    """Its S3. The Swift user is `test:tester`, with the same secret."""
    keyring, conf = str(ceph.directory / "keyring"), ["-c", str(ceph.conf)]
    secret = register_secret("rgw-" + uuid.uuid4().hex, "key of a radosgw user")
    caps = ["--cap", "mon", "allow rw", "--cap", "osd", "allow rwx"]
    _made("ceph-authtool", keyring, "--gen-key", "-n", "client.rgw.a", *caps)
    _made("ceph", *conf, "auth", "import", "-i", keyring)
    admin = ["radosgw-admin", *conf]
    _made(*admin, "user", "create", "--uid=test", "--display-name=test", "--access-key=testkey", f"--secret={secret}")
    swift = ["--subuser=test:tester", "--access=full", "--key-type=swift", f"--secret={secret}"]
    _made(*admin, "subuser", "create", "--uid=test", *swift)
    log = ceph.directory / "rgw.log"
    endpoint = f"http://127.0.0.1:{ceph.rgw}"
    with running(["radosgw", *conf, "-n", "client.rgw.a", "-f"], log) as process:
        wait_for(lambda: http_ok(endpoint), process, log)
        yield S3Server(endpoint, None, None, "testkey", secret, process.pid)


def _made(*argv: str) -> bytes:
    ran = subprocess.run(argv, capture_output=True, timeout=90)
    assert ran.returncode == 0, (argv, ran.stderr.decode(errors="replace"))
    return ran.stdout


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    with run_ceph(tmp_path_factory.mktemp("ceph")) as running_ceph:
        yield running_ceph


@pytest.fixture(scope="session")
def radosgw(ceph: Ceph) -> Iterator[S3Server]:
    with run_radosgw(ceph) as server:
        yield server
