"""A real iSCSI target (tgt) on a high loopback port, with a control socket of its own, and LUNs that are files."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from stores.secret import Secret
from stores.to import PrimaryDataStoreTO
from tests.secret_scan import register_secret
from tests.servers import free_ports, running, wait_for

USER = "chapuser"


@dataclass(frozen=True)
class TargetLun:
    """`file`: what the LUN's bytes are in."""

    target: str
    tid: int
    file: Path

    @property
    def ref(self) -> str:
        return f"{self.target}/1"


class IscsiServer:
    def __init__(self, directory: Path, port: int, number: int, pid: int) -> None:
        self.directory = directory
        self.port = port
        self.pid = pid
        self.secret = register_secret("chap-" + uuid.uuid4().hex[:11], "a CHAP secret")
        self._number = str(number)
        self._tids = count(1)

    def admin(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        argv = ["tgtadm", "-C", self._number, "--lld", "iscsi", *arguments]
        env = {**os.environ, "TGT_IPC_SOCKET": str(self.directory / "ctl")}
        return subprocess.run(argv, check=False, capture_output=True, env=env)

    def ready(self) -> bool:
        return self.admin("--mode", "sys", "--op", "show").returncode == 0

    def lun(self, data: bytes, *, chap: bool = True) -> TargetLun:
        """A new target, whose LUN 1 holds `data`; as with all of tgt's, LUN 0 is the controller."""
        tid = next(self._tids)
        made = TargetLun(f"iqn.2026-01.test.example:{uuid.uuid4().hex}", tid, self.directory / f"lun-{tid}")
        made.file.write_bytes(data)
        of = ("--tid", str(tid))
        self._do("--mode", "target", "--op", "new", *of, "-T", made.target)
        self._do("--mode", "logicalunit", "--op", "new", *of, "--lun", "1", "-b", str(made.file))
        if chap:
            self._do("--mode", "account", "--op", "bind", *of, "--user", USER)
        self._do("--mode", "target", "--op", "bind", *of, "-I", "127.0.0.1")
        return made

    def remove(self, lun: TargetLun) -> None:
        self._do("--mode", "target", "--op", "delete", "--force", "--tid", str(lun.tid))
        lun.file.unlink()

    def pool(self, *, secret: str | None = None, port: int | None = None) -> PrimaryDataStoreTO:
        """As a command names it; with another secret, or without any (an empty one)."""
        secret = self.secret if secret is None else secret
        details = {"chapInitiatorUsername": Secret(USER), "chapInitiatorSecret": Secret(secret)} if secret else {}
        return PrimaryDataStoreTO(
            uuid="luns", poolType="Iscsi", host="127.0.0.1", port=port or self.port, details=details, isManaged=True
        )

    def _do(self, *arguments: str) -> None:
        done = self.admin(*arguments)
        assert done.returncode == 0, done.stderr


@contextmanager
def run_tgt(directory: Path) -> Iterator[IscsiServer]:
    (port,) = free_ports(1)
    number = port % 30_000  # no other instance's on this machine
    argv = ["env", f"TGT_IPC_SOCKET={directory / 'ctl'}", "/usr/sbin/tgtd", "-f", "-C", str(number)]
    log = directory / "tgtd.log"
    with running([*argv, "--iscsi", f"portal=127.0.0.1:{port}"], log) as process:
        try:
            server = IscsiServer(directory, port, number, process.pid)
            wait_for(server.ready, process, log)
            server.admin("--mode", "account", "--op", "new", "--user", USER, "--password", server.secret)
            server.lun(bytes(4096))  # without any target it hangs up on everybody
            yield server
        finally:
            process.kill()  # it does not end at SIGTERM while it has targets


@pytest.fixture(scope="session")
def tgt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IscsiServer]:
    with run_tgt(tmp_path_factory.mktemp("tgt")) as server:
        yield server
