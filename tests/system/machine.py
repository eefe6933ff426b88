"""The system guest at work: booted under QEMU, and spoken to by a shell behind a virtio port.

Always emulated (TCG): a machine may show a /dev/kvm on which no stock kernel boots.
"""

from __future__ import annotations

import base64
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.system.image import Image

BOOT_S = 300.0  # half a minute on an idle machine
COMMAND_S = 300.0
HOST = "10.0.2.2"
"""This machine's loopback, as the guest sees it."""

_ENDED = re.compile(rb"\n@@ ENDED (\d+)\r?\n")


class Failed(Exception):
    """A script in the guest ended with another exit code than it should."""


class Machine:
    def __init__(self, control: socket.socket, console: Path) -> None:
        self._control = control
        self._console = console
        self._said = b""

    def wait(self) -> None:
        """Until it is up."""
        self._read_until(re.compile(rb"@@ UP \S+\r?\n"), BOOT_S)

    def tried(self, script: str, *, within_s: float = COMMAND_S) -> tuple[int, str]:
        """Exit code and output, both streams together, of a shell script run as root."""
        self._control.sendall(base64.b64encode(script.encode()) + b"\n")
        output, ended = self._read_until(_ENDED, within_s)
        return int(ended[1]), output.decode(errors="replace").replace("\r\n", "\n").strip()

    def run(self, script: str, *, within_s: float = COMMAND_S) -> str:
        """Output of a script whose exit code is 0."""
        code, output = self.tried(f"set -euo pipefail\n{script}", within_s=within_s)
        if code:
            raise Failed(f"exit code {code} of:\n{script}\n{output[-4000:]}")
        return output

    def put(self, path: str, content: str, *, mode: str = "0644", group: str = "root") -> None:
        encoded = base64.b64encode(content.encode()).decode()
        self.run(f"install -D -m {mode} -g {group} /dev/null {path}\nbase64 -d > {path} <<< {encoded}")

    def until(self, script: str, *, within_s: float = COMMAND_S) -> str:
        """Output of the first run of `script` that ends with 0."""
        deadline = time.monotonic() + within_s
        while True:
            code, output = self.tried(script)
            if code == 0:
                return output
            if time.monotonic() > deadline:
                raise Failed(f"never ended with 0 in {within_s:g} s:\n{script}\n{output[-4000:]}")
            time.sleep(0.2)

    def _read_until(self, pattern: re.Pattern[bytes], within_s: float) -> tuple[bytes, re.Match[bytes]]:
        deadline = time.monotonic() + within_s
        while (found := pattern.search(self._said)) is None:
            self._control.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                piece = self._control.recv(65536)
            except TimeoutError:
                piece = b""
            if not piece:
                tail = self._console.read_text(errors="replace")[-2000:]
                raise Failed(f"no answer from the guest; it said {self._said[-2000:]!r}, and on its console: {tail}")
            self._said += piece
        before, self._said = self._said[: found.start()], self._said[found.end() :]
        return before, found


@contextmanager
def booted(image: Image, disks: Sequence[Path], *, memory_mib: int = 1536) -> Iterator[Machine]:
    """The guest, until the context ends. `disks`: raw files, which it sees as vdb, vdc, ... and may write to."""
    with tempfile.TemporaryDirectory(prefix="sa-system-") as folder:
        control, console = Path(folder) / "control.sock", Path(folder) / "console.log"
        argv = [
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"),
            *("-m", str(memory_mib), "-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{console}"),
            *("-kernel", str(image.kernel.image), "-initrd", str(image.initramfs)),
            *(
                "-append",
                "console=ttyS0 quiet mitigations=off random.trust_cpu=on net.ifnames=0 systemd.show_status=no",
            ),
            *("-drive", f"file={image.disk},format=qcow2,if=virtio,snapshot=on"),
            *(word for disk in disks for word in ("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe")),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=c,path={control},server=on,wait=off"),
            *("-device", "virtserialport,chardev=c,name=control"),
            *("-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n"),
        ]
        with (Path(folder) / "qemu.log").open("wb") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            with _connected(control, process, Path(folder) / "qemu.log") as connection:
                machine = Machine(connection, console)
                machine.wait()
                yield machine
        finally:
            process.kill()
            process.wait()


@contextmanager
def _connected(path: Path, process: subprocess.Popen[bytes], log: Path) -> Iterator[socket.socket]:
    deadline = time.monotonic() + BOOT_S
    with socket.socket(socket.AF_UNIX) as connection:
        while True:
            try:
                connection.connect(str(path))
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"QEMU did not come up: {log.read_text(errors='replace')[-2000:]}") from error
                time.sleep(0.05)
            else:
                yield connection
                return
