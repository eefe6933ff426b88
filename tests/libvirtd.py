"""A real libvirtd of our own: in a mount namespace, with directories of its own. Its machines: `tests.kvm_machines`.

Outside of that namespace nothing is touched, and paths of disks are the same inside. One for all tests; guests outlive it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt
import pytest

from hypervisors.kvm.libvirt_calls import library

WAIT_S = 60.0  # a first look at qemu takes 8 s, and minutes on a busy machine

_CONF = """unix_sock_dir = "{folder}/sock"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:{folder}/log/libvirtd.log"
"""

# Without systemd, cgroups, virtlogd; as root, and with files that are root's.
_QEMU_CONF = """user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = [ ]
cgroup_controllers = [ ]
stdio_handler = "file"
"""

# libvirt's qemu driver wants these to exist, whoever runs the machines.
_USERS = "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n"
_GROUPS = "libvirt-qemu:x:64055:\nlibvirt:x:64056:\nkvm:x:64057:\n"

_ENTER = """
for p in etc:/etc/libvirt lib:/var/lib/libvirt run:/run/libvirt cache:/var/cache/libvirt log:/var/log/libvirt; do
  mkdir -p ${p#*:}; mount --bind $DIR/${p%%:*} ${p#*:}; done
mount --bind $DIR/passwd /etc/passwd; mount --bind $DIR/group /etc/group
exec libvirtd -f /etc/libvirt/libvirtd.conf -p $DIR/libvirtd.pid
"""


def uri_of(folder: Path) -> str:
    """Of the daemon that has, or will have, its things there."""
    return f"qemu+unix:///system?socket={folder}/sock/libvirt-sock"


class Libvirtd:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("etc", "lib", "run", "cache", "log", "sock"):
            (folder / name).mkdir()
        (folder / "etc" / "libvirtd.conf").write_text(_CONF.format(folder=folder))
        (folder / "etc" / "qemu.conf").write_text(_QEMU_CONF)
        (folder / "passwd").write_text(Path("/etc/passwd").read_text() + _USERS)
        (folder / "group").write_text(Path("/etc/group").read_text() + _GROUPS)

    @property
    def uri(self) -> str:
        return uri_of(self.folder)

    def start(self) -> None:
        with (self.folder / "log" / "stderr").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "-m", "--propagation", "private", "sh", "-ec", _ENTER],
                env={**os.environ, "DIR": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def stop(self) -> None:
        """Machines go on."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(WAIT_S)
            self._process = None

    def pause(self) -> None:
        """It takes connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def connect(self) -> Any:
        """A connection (virConnect) beside those of what is tested. Waits for the daemon."""
        library()
        until = time.monotonic() + WAIT_S
        while True:
            try:
                return libvirt.open(self.uri)
            except libvirt.libvirtError as error:
                if time.monotonic() > until or self._process is None or self._process.poll() is not None:
                    said = (self.folder / "log" / "stderr").read_text()[-2000:]
                    raise RuntimeError(f"libvirtd did not come up: {error} {said}") from error
                time.sleep(0.05)


def remove(domain: Any) -> None:
    """A machine, whatever it does."""
    persists = domain.isPersistent()
    if domain.isActive():
        domain.destroy()
    if persists:
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)


@contextmanager
def started(folder: Path) -> Iterator[Libvirtd]:
    """Until the end of the context, with all its machines."""
    daemon = Libvirtd(folder)
    daemon.start()
    yield daemon
    connection = daemon.connect()
    for domain in connection.listAllDomains():
        remove(domain)
    connection.close()
    daemon.stop()


@pytest.fixture(scope="session")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirtd]:
    with started(tmp_path_factory.mktemp("v")) as daemon:
        yield daemon
