"""A real Samba on a high loopback port, with a configuration of its own and nothing of the system's."""

from __future__ import annotations

import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from stores.backends.smb_place import SmbLogin, SmbPlace
from stores.secret import Secret
from tests.secret_scan import register_secret
from tests.servers import free_ports, running, wait_for

SHARE = "share"

# strict sync, which makes a flush an fsync, is the default.
SMB_CONF = """
[global]
server role = standalone server
interfaces = 127.0.0.1
bind interfaces only = yes
smb ports = {port}
disable netbios = yes
lock directory = {dir}/lock
state directory = {dir}/state
cache directory = {dir}/cache
pid directory = {dir}/pid
private dir = {dir}/private
ncalrpc dir = {dir}/ncalrpc
log file = {dir}/smbd.log
passdb backend = tdbsam:{dir}/private/passdb.tdb
map to guest = never
disable spoolss = yes
load printers = no
printing = bsd
printcap name = /dev/null
server min protocol = SMB2_10
usershare path =
{more}
[{share}]
path = {root}
read only = no
valid users = root
"""


@dataclass(frozen=True)
class SambaServer:
    root: Path
    """The directory that is the share."""
    port: int
    password: str
    pid: int

    def place(self, *folder: str, port: int | None = None, password: str | None = None, share: str = SHARE) -> SmbPlace:
        """The share, or a folder of it, as root of Samba's own users."""
        login = SmbLogin("root", Secret(self.password if password is None else password))
        return SmbPlace("127.0.0.1", share, folder, port or self.port, login)


@contextmanager
def run_samba(directory: Path, *, more: str = "") -> Iterator[SambaServer]:
    """`more`: further lines of the section [global]."""
    for name in ("share", "lock", "state", "cache", "pid", "private", "ncalrpc"):
        (directory / name).mkdir(exist_ok=True)
    (directory / "ncalrpc").chmod(0o755)
    root = directory / "share"
    (port,) = free_ports(1)
    config = directory / "smb.conf"
    config.write_text(SMB_CONF.format(dir=directory, port=port, root=root, share=SHARE, more=more))
    password = register_secret("pw-" + uuid.uuid4().hex, "password of a Samba user")
    subprocess.run(
        ["smbpasswd", "-c", str(config), "-s", "-a", "root"],
        input=f"{password}\n{password}\n",
        text=True,
        check=True,
        capture_output=True,
    )
    argv = ["/usr/sbin/smbd", "-F", "--no-process-group", "-s", str(config), "-l", str(directory)]
    log = directory / "smbd.out"
    with running(argv, log) as process:
        wait_for(lambda: _answers(port), process, log)
        yield SambaServer(root, port, password, process.pid)


def _answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def samba(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SambaServer]:
    with run_samba(tmp_path_factory.mktemp("samba")) as server:
        yield server
