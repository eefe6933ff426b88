"""A tiny guest: one qcow2 with a Debian kernel and a busybox initramfs that boots under TCG in seconds.

The disk is one FAT file system without a partition table, made bootable by syslinux: no loop device, no mount, no root.
The kernel comes from Debian's archive and is unpacked, never installed. TCG and not KVM: a machine may show a /dev/kvm on
which no stock kernel boots.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MiB = 1024 * 1024
GiB = 1024 * MiB
BOOT_WAIT_S = 180.0  # it takes 5 s on an idle machine
MODULES = ("virtio_pci", "virtio_blk")

INIT = """#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
echo 1 > /proc/sys/kernel/printk
for module in {modules}; do modprobe $module 2>/dev/null; done
exec </dev/ttyS0 >/dev/ttyS0 2>&1
echo "@@ READY $(uname -r)"
echo "@@ SECTORS $(cat /sys/block/vda/size)"
echo "@@ SHA256 $(dd if=/dev/vda bs=1M count={hashed_mib} 2>/dev/null | sha256sum | cut -d' ' -f1)"
poweroff -f
"""


@dataclass(frozen=True)
class Kernel:
    root: Path
    version: str

    @property
    def image(self) -> Path:
        return self.root / "boot" / f"vmlinuz-{self.version}"


@dataclass(frozen=True)
class Booted:
    """What the guest said of itself."""

    kernel: str
    sectors: int
    sha256: str


def run(*argv: str | Path, cwd: Path | None = None, stdin: bytes | None = None) -> bytes:
    done = subprocess.run([str(a) for a in argv], cwd=cwd, input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{argv[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-800:]}")
    return done.stdout


def fetch_kernel(cache: Path) -> Kernel:
    """Debian's current cloud kernel (27 MB), unpacked below `cache` and kept there."""
    cache = cache.resolve()
    found = sorted(cache.glob("boot/vmlinuz-*"))
    if not found:
        cache.mkdir(parents=True, exist_ok=True)
        depends = run("apt-cache", "depends", "linux-image-cloud-amd64").decode()
        package = re.search(r"Depends: (linux-image-\S+)", depends)
        if package is None:
            raise RuntimeError("apt knows no linux-image-cloud-amd64: run `apt-get update` first")
        run("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package[1], cwd=cache)
        (deb,) = cache.glob("*.deb")
        run("dpkg-deb", "-x", deb, cache)
        deb.unlink()
        found = sorted(cache.glob("boot/vmlinuz-*"))
    version = found[-1].name.removeprefix("vmlinuz-")
    if not (cache / "lib" / "modules" / version / "modules.dep").exists():
        run("depmod", "-b", cache, version)
    return Kernel(cache, version)


def build_initramfs(
    kernel: Kernel, work: Path, script: str, drivers: Sequence[str] = MODULES, programs: Sequence[Path] = ()
) -> Path:
    """`script`: what runs in it, with those `drivers` to be loaded, and `programs` in /bin."""
    root = work / "initramfs"
    modules = root / "lib" / "modules" / kernel.version
    for name in ("bin", "dev", "proc", "sys"):
        (root / name).mkdir(parents=True, exist_ok=True)
    modules.mkdir(parents=True, exist_ok=True)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    (root / "bin" / "sh").symlink_to("busybox")
    for program in programs:
        shutil.copy(program, root / "bin" / program.name)
    source = kernel.root / "lib" / "modules" / kernel.version
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(source / name, modules / name)
    for module in drivers:
        shown = run("modprobe", "-d", kernel.root, "-S", kernel.version, "--show-depends", module).decode()
        for line in shown.splitlines():
            if line.startswith("insmod "):
                path = Path(line.split()[1])
                target = modules / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    run("depmod", "-b", root, kernel.version)
    init = root / "init"
    init.write_text(script)
    init.chmod(0o755)
    names = b"\n".join(sorted(str(p.relative_to(root)).encode() for p in root.rglob("*")))
    archive = work / "initramfs.gz"
    archive.write_bytes(gzip.compress(run("cpio", "-o", "-H", "newc", "--quiet", cwd=root, stdin=names), 1))
    return archive


def build_disk(kernel: Kernel, target: Path, *, size: int, payload: int, hashed_mib: int = 32) -> None:
    """A bootable qcow2 of `size` bytes (virtual) at `target`, with `payload` bytes of random data as a file beside the
    kernel, so that there is something to transfer."""
    work = target.parent / (target.name + ".work")
    work.mkdir()
    try:
        script = INIT.format(modules=" ".join(MODULES), hashed_mib=hashed_mib)
        initramfs = build_initramfs(kernel, work, script)
        raw = work / "disk.raw"
        with raw.open("wb") as file:
            file.truncate(size)
        run("mformat", "-i", raw, "-F", "-v", "TINY", "::")
        run("syslinux", "--install", raw)
        config = work / "syslinux.cfg"
        config.write_text(
            "SERIAL 0 115200\nDEFAULT linux\nPROMPT 0\nLABEL linux\n LINUX vmlinuz\n INITRD initrd.gz\n"
            " APPEND console=ttyS0 quiet\n"
        )
        run("mcopy", "-i", raw, kernel.image, "::vmlinuz")
        run("mcopy", "-i", raw, initramfs, "::initrd.gz")
        run("mcopy", "-i", raw, config, "::syslinux.cfg")
        if payload:
            filler = work / "payload.bin"
            with filler.open("wb") as file:
                for _ in range(payload // MiB):
                    file.write(os.urandom(MiB))
            run("mcopy", "-i", raw, filler, "::payload.bin")
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, target)
    finally:
        shutil.rmtree(work)


def boot(disk: Path, *, format: str = "qcow2") -> Booted:  # noqa: A002  qemu's word for it
    """Boot `disk` (nothing is written to it) and return what the guest reports before it powers off."""
    argv = [
        "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-m", "256", "-nodefaults", "-display", "none",
        "-no-reboot", "-serial", "stdio", "-snapshot",
        "-drive", f"file={disk},format={format},if=virtio",
    ]  # fmt: skip
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=BOOT_WAIT_S, check=False)
    console = done.stdout.decode(errors="replace")
    said = dict(re.findall(r"@@ (READY|SECTORS|SHA256) (\S+)", console))
    if len(said) != 3:
        raise RuntimeError(f"the guest did not come up: {console[-1500:]} {done.stderr.decode(errors='replace')}")
    return Booted(said["READY"], int(said["SECTORS"]), said["SHA256"])


if __name__ == "__main__":
    start = time.monotonic()
    where = Path("build/guest")
    where.mkdir(parents=True, exist_ok=True)
    build_disk(fetch_kernel(where / "kernel"), where / "try.qcow2", size=64 * MiB, payload=0)
    print(boot(where / "try.qcow2"), f"{time.monotonic() - start:.1f} s")
    (where / "try.qcow2").unlink()
