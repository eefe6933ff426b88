"""Virtual machines of a real libvirt, without KVM: made, started and looked at without going through the agent, and one that
looks at its own disks."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import pytest

from hypervisors.contract import ImageSpec, Source
from hypervisors.narrowing import as_local
from stores.contract import LocalPath, ObjectInfo
from stores.to import ImageFormat
from tests.guest import Kernel, build_initramfs, fetch_kernel
from tests.libvirtd import WAIT_S, Libvirtd, remove

ROOT = Path(__file__).parents[1]
DRIVERS = ("virtio_pci", "virtio_blk", "virtio_scsi", "virtio_console", "sd_mod", "sr_mod", "isofs")

SCRIPT = """#!/bin/sh
/bin/busybox --install -s /bin; export PATH=/bin
mount -t devtmpfs d /dev; mount -t proc p /proc; mount -t sysfs s /sys; echo 1 > /proc/sys/kernel/printk
for module in {modules}; do modprobe $module 2>/dev/null; done
exec </dev/ttyS0 >/dev/ttyS0 2>&1; stty -echo -icrnl icrnl
say() {{ echo "@@ $*"; }}
gpe() {{ echo $1 > /sys/firmware/acpi/interrupts/gpe01; }}
reply() {{ echo "{{\\"return\\": $1}}" >&3; }}
agent() {{ set -- /dev/vport*p1; exec 3<>$1; while :; do line=; read -r line <&3 || sleep 0.1; case "$line" in
  "") ;;
  *guest-sync*) id=${{line##*:}}; reply ${{id%%\\}}*}};;
  *fsfreeze-freeze*) kill -STOP $writer; say FROZE; reply 1;;
  *fsfreeze-thaw*) kill -CONT $writer; say THAWED; reply 1;;
  *) reply 0;; esac; done; }}
mkdir /mnt; say READY
while read -r cmd a b c; do case "$cmd" in
  disks) say DISKS $(for d in /sys/block/vd* /sys/block/sd*; do
    [ -d $d ] && echo ${{d##*/}}:$(cat $d/serial 2>/dev/null):$(cat $d/ro):$(($(cat $d/size) * 512)); done);;
  hash) say HASH $(dd if=/dev/$a bs=64k iflag=direct 2>/dev/null | sha256sum | cut -d' ' -f1);;
  write) echo "$b" | dd of=/dev/$a bs=512 conv=sync,notrunc 2>/dev/null; sync; say WROTE;;
  medium) say MEDIUM $(dd if=/dev/sr0 bs=2048 2>/dev/null | sha256sum | cut -d' ' -f1);;
  mount) mount -t iso9660 -o ro /dev/sr0 /mnt; say MOUNTED $? $(ls /mnt);;
  umount) umount /mnt; say UMOUNTED $?;;
  hold) gpe mask; say HOLDS;;
  free) gpe unmask; say FREE;;
  later) (sleep $a; gpe unmask) & say LATER;;
  keep-writing) writer /dev/$a $b $c & writer=$!;;
  written) kill -USR1 $writer;;
  agent) agent & agent=$!; say AGENT;;
  no-agent) kill $agent; say NO-AGENT;;
  stop-writing) kill -TERM $writer; wait $writer;;
esac; done
"""
"""What runs in a guest: it answers a line with a line. `hold`: it is deaf to the interrupt by which ACPI tells it that a device
comes or is to go. `agent`: it answers libvirt from now on, and what comes to rest is what `keep-writing` has begun."""


class Console:
    """A guest's serial console."""

    def __init__(self, path: Path) -> None:
        self._said = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(WAIT_S)
        self._socket.connect(str(path))

    def wait(self, word: str) -> list[str]:
        """What follows `word` in the guest's next answer that begins with it."""
        mark = b"@@ " + word.encode()
        while True:
            start = self._said.find(mark)
            end = self._said.find(b"\n", start)
            if start >= 0 and end >= 0:
                line, self._said = self._said[start:end], self._said[end:]
                return line.decode().split()[2:]
            piece = self._socket.recv(65536)
            if not piece:
                raise RuntimeError(f"the guest is gone; it said {self._said[-2000:]!r}")
            self._said += piece

    def ask(self, line: str, word: str) -> list[str]:
        self._socket.sendall(line.encode() + b"\n")
        return self.wait(word)

    def close(self) -> None:
        self._socket.close()


class Lab:
    def __init__(self, daemon: Libvirtd, kernel: Kernel, initramfs: Path) -> None:
        self.daemon = daemon
        self.connection = daemon.connect()
        self._kernel = kernel
        self._initramfs = initramfs
        self._numbers = count()

    def domain(self, name: str) -> Any:
        return self.connection.lookupByName(name)

    def xml(self, name: str, *, system: bool = False, drive: bool = True, ports: int = 8) -> str:
        """`system`: with something to start, and a console. `ports`: for disks to come."""
        roots = "".join(f"<controller type='pci' index='{n + 1}' model='pcie-root-port'/>" for n in range(ports))
        boot = console = ""
        if system:
            boot = (
                f"<kernel>{self._kernel.image}</kernel><initrd>{self._initramfs}</initrd>"
                "<cmdline>console=ttyS0 quiet</cmdline>"
            )
            console = (
                f"<serial type='unix'><source mode='bind' path='{self.console_of(name)}'/></serial>"
                "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
            )
        return (
            f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>{160 if system else 32}</memory>"
            f"<os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os><features><acpi/><apic/></features>"
            "<on_poweroff>destroy</on_poweroff><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>"
            f"<controller type='pci' index='0' model='pcie-root'/>{roots}<controller type='usb' model='none'/>"
            f"<controller type='scsi' index='0' model='virtio-scsi'/><memballoon model='none'/>{console}"
            + ("<disk type='file' device='cdrom'><target dev='sdd' bus='scsi'/><readonly/></disk>" if drive else "")
            + "</devices></domain>"
        )

    def define(self, name: str, **told: Any) -> Any:
        """A machine that does not run."""
        return self.connection.defineXML(self.xml(name, **told))

    def console_of(self, name: str) -> Path:
        return self.daemon.folder / f"{name}.con"

    def restart(self) -> None:
        """The daemon. Machines go on."""
        self.daemon.stop()
        self.daemon.start()
        self.connection = self.daemon.connect()

    def names(self) -> set[str]:
        return {domain.name() for domain in self.connection.listAllDomains()}

    def remove(self, name: str) -> None:
        remove(self.domain(name))

    def disks(self, name: str, *, later: bool = False) -> list[ElementTree.Element]:
        domain = self.domain(name)
        if later and not domain.isPersistent():
            return []
        xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE if later else 0)
        return ElementTree.fromstring(xml).findall("./devices/disk")

    def update(self, name: str, disk: ElementTree.Element) -> None:
        """As it is told, now and later."""
        both = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
        self.domain(name).updateDeviceFlags(ElementTree.tostring(disk, encoding="unicode"), both)

    def visible(self, name: str) -> list[str]:
        """Paths of what the machine has now, or, where it does not run, from its next start on; with what its drives hold."""
        found = (said(disk, "source", "file") for disk in self.disks(name))
        return sorted(path for path in found if path is not None)

    def held(self, name: str) -> int:
        """How many disks it has, now or later."""
        found = [*self.disks(name), *self.disks(name, later=True)]
        return len({said(disk, "target", "dev") for disk in found if disk.get("device") != "cdrom"})

    def volume(
        self, content: bytes = b"", *, backing: Source | None = None, image_format: ImageFormat = ImageFormat.QCOW2
    ) -> Source:
        """A new one of 8 MiB, which begins with `content`."""
        path = self.daemon.folder / f"v{next(self._numbers)}"
        kind = image_format.value.lower()
        linked = ["-F", "qcow2", "-b", str(path_of(backing))] if backing is not None else []
        subprocess.run(["qemu-img", "create", "-q", "-f", kind, *linked, str(path), "8M"], check=True)
        if content:
            held = path.with_suffix(".content")
            held.write_bytes(content)
            write = f"write -s {held} 0 {len(content)}"
            subprocess.run(["qemu-io", "-f", kind, "-c", write, str(path)], check=True, stdout=subprocess.DEVNULL)
        return source(path, image_format, *([] if backing is None else [backing]))

    def iso(self) -> Source:
        """A new one."""
        number = next(self._numbers)
        path, folder = self.daemon.folder / f"i{number}.iso", self.daemon.folder / f"i{number}"
        folder.mkdir()
        (folder / "number").write_text(f"{number}")
        subprocess.run(["genisoimage", "-quiet", "-o", str(path), str(folder)], check=True)
        return source(path, ImageFormat.ISO)


def said(disk: ElementTree.Element, name: str, attribute: str) -> str | None:
    found = disk.find(name)
    return None if found is None else found.get(attribute)


def source(path: Path, image_format: ImageFormat, *backing: Source) -> Source:
    return Source(LocalPath(path, ObjectInfo(path.name, None)), ImageSpec(image_format), backing)


def path_of(image: Source) -> Path:
    return as_local(image.presentation).path


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > end:
            raise RuntimeError("it did not come to that")
        time.sleep(0.02)


class Stage:
    """Machines "running", which has a system, "other", which runs without one, and "halted". They stay over tests, each of
    which begins with machines that have nothing."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        lab.define("running", system=True).create()
        self.console = Console(lab.console_of("running"))
        self._holding = False
        self.console.wait("READY")
        self.clear()

    def hold(self, times: int | None) -> None:
        """The machine with a system does not let go: never, for some seconds, or not any more."""
        if times == 0:
            if self._holding:
                self.console.ask("free", "FREE")
        else:
            self.console.ask("hold", "HOLDS")
        if times:
            self.console.ask(f"later {times}", "LATER")
        self._holding = times != 0

    def seen(self) -> dict[str, tuple[str, bool, int]]:
        """What the guest sees: by serial, its name of the disk, whether it is read-only, and bytes."""
        found = (each.split(":") for each in self.console.ask("disks", "DISKS"))
        return {serial: (name, read_only == "1", int(size)) for name, serial, read_only, size in found}

    def clear(self) -> None:
        """Nothing is attached to anything."""
        lab = self.lab
        self.hold(0)
        running = lab.domain("running")
        if running.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
            running.resume()
        self.console.ask("umount", "UMOUNTED")
        for disk in lab.disks("running"):
            if disk.get("device") != "cdrom":
                running.detachDeviceAlias(said(disk, "alias", "name"), libvirt.VIR_DOMAIN_AFFECT_LIVE)
        until(lambda: all(disk.get("device") == "cdrom" for disk in lab.disks("running")))
        for flag in (libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG):
            for disk in lab.disks("running", later=flag == libvirt.VIR_DOMAIN_AFFECT_CONFIG):
                if disk.get("device") != "cdrom":
                    running.detachDeviceFlags(ElementTree.tostring(disk, encoding="unicode"), flag)
                elif (medium := disk.find("source")) is not None:
                    disk.remove(medium)
                    running.updateDeviceFlags(ElementTree.tostring(disk, encoding="unicode"), flag)
        for name in lab.names() - {"running"}:
            if lab.visible(name) or lab.held(name) or lab.domain(name).isActive() != (name == "other"):
                lab.remove(name)
        for name in {"other", "halted"} - lab.names():
            lab.define(name)
        for name in lab.names() - {"running", "other", "halted"}:
            lab.remove(name)
        if not lab.domain("other").isActive():
            lab.domain("other").create()


def build_writer(work: Path) -> Path:
    """`tests/guest_writer.c`, which runs anywhere."""
    program = work / "writer"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(program), str(ROOT / "tests" / "guest_writer.c")], check=True)
    return program


@contextmanager
def made_lab(libvirtd: Libvirtd) -> Iterator[Lab]:
    """Of a daemon that runs. Its machines are gone afterwards."""
    kernel = fetch_kernel(ROOT / "build" / "guest" / "kernel")
    work = libvirtd.folder / f"w{time.monotonic_ns()}"
    work.mkdir()
    script = SCRIPT.format(modules=" ".join(DRIVERS))
    lab = Lab(libvirtd, kernel, build_initramfs(kernel, work, script, DRIVERS, [build_writer(work)]))
    yield lab
    for name in lab.names():
        lab.remove(name)
    lab.connection.close()


@contextmanager
def made_stage(lab: Lab) -> Iterator[Stage]:
    made = Stage(lab)
    yield made
    made.console.close()


@pytest.fixture(scope="module")
def lab(libvirtd: Libvirtd) -> Iterator[Lab]:
    with made_lab(libvirtd) as made:
        yield made


@pytest.fixture(scope="module")
def stage(lab: Lab) -> Iterator[Stage]:
    with made_stage(lab) as made:
        yield made
