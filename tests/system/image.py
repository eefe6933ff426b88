"""The disk of the system guest: Debian with systemd, made from packages by mmdebstrap, without a loop device.

It is made once for each set of package versions, kept below `build/system/`, and never written to: a guest runs on a snapshot.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.guest import Kernel, build_initramfs, fetch_kernel, run

SUITE = "bookworm"
SIZE = "1600M"

PACKAGES = (
    *("systemd-sysv", "udev", "dbus", "kmod", "iproute2"),
    *("python3", "qemu-utils"),  # what the agent's package depends on
    *("nfs-kernel-server", "nfs-common", "lvm2", "thin-provisioning-tools"),
)

DRIVERS = ("virtio_pci", "virtio_blk")

# The initramfs loads the drivers of the root disk and hands over.
INIT = """#!/bin/sh
/bin/busybox --install -s /bin; export PATH=/bin
mount -t devtmpfs d /dev; mount -t proc p /proc; mount -t sysfs s /sys
for module in {modules}; do modprobe $module 2>/dev/null; done
for i in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && break; sleep .2; done
mkdir /mnt; mount -o ro /dev/vda /mnt; umount /proc /sys; mount --move /dev /mnt/dev; exec switch_root /mnt /sbin/init
"""

# A shell behind a virtio port: a line is a script in base64, the answer its output and then its exit code. One open serves
# both directions: the port refuses a second one.
CONTROL = r"""#!/bin/bash
exec 0<>/dev/virtio-ports/control 1>&0 2>&1
echo "@@ UP $(cut -d' ' -f1 /proc/uptime)"
while IFS= read -r line; do
  base64 -d <<<"$line" > /run/control.sh
  bash /run/control.sh </dev/null; printf '\n@@ ENDED %s\n' $?
done
"""

CONTROL_UNIT = r"""[Unit]
Requires=dev-virtio\x2dports-control.device
After=dev-virtio\x2dports-control.device
[Service]
ExecStart=/usr/local/sbin/control
[Install]
WantedBy=multi-user.target
"""

NETWORK = """[Match]
Name=e*
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
"""

# What nobody needs here, and what takes half of the time to boot under emulation.
MASKED = (
    *(
        "getty.target",
        "systemd-logind.service",
        "systemd-timesyncd.service",
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
    ),
    *(
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
        "systemd-hwdb-update.service",
        "sys-kernel-debug.mount",
    ),
    *("sys-kernel-tracing.mount", "nfs-blkmap.service", "lvm2-monitor.service", "e2scrub_reap.service"),
    *("console-getty.service", "serial-getty@ttyS0.service", "systemd-update-utmp.service"),
)


@dataclass(frozen=True)
class Image:
    kernel: Kernel
    initramfs: Path
    disk: Path


def image(build: Path) -> Image:
    """From `build/system`, or made there. Takes a minute, and as long as the packages take to come."""
    kernel = fetch_kernel(build / "guest" / "kernel")
    home = build.resolve() / "system" / _key(kernel)
    found = Image(kernel, home / "initramfs.gz", home / "root.qcow2")
    if not found.disk.exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        build_initramfs(kernel, home, INIT.format(modules=" ".join(DRIVERS)), DRIVERS)
        _build_disk(kernel, home, found.disk)
    return found


def _key(kernel: Kernel) -> str:
    """Changes with every version of what is in the image, and with how it is made."""
    versions = run("apt-cache", "policy", *PACKAGES)
    candidates = re.findall(rb"^(\S+):\n.*\n  Candidate: (\S+)", versions, re.MULTILINE)
    if len(candidates) != len(PACKAGES):
        raise RuntimeError("apt does not know all packages of the guest: run `apt-get update` first")
    parts = (repr(candidates).encode(), kernel.version.encode(), Path(__file__).read_bytes())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _build_disk(kernel: Kernel, work: Path, target: Path) -> None:
    archive, root, raw = work / "root.tar", work / "root", work / "root.ext4"
    without = [f"--dpkgopt=path-exclude=/usr/share/{what}/*" for what in ("man", "doc", "locale")]
    run(
        *("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", '--aptopt=APT::Install-Recommends "false"'),
        *without,
        *(f"--include={','.join(PACKAGES)}", SUITE, str(archive)),
    )
    root.mkdir()
    run("tar", "-xf", archive, "-C", root)
    modules = Path("lib/modules") / kernel.version
    shutil.copytree(kernel.root / modules, root / modules, symlinks=True)
    for unneeded in ("drivers/gpu", "drivers/net/ethernet", "drivers/infiniband", "sound"):
        shutil.rmtree(root / modules / "kernel" / unneeded, ignore_errors=True)
    run("depmod", "-b", root, kernel.version)
    _configure(root)
    run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", root, raw, SIZE)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, target.with_suffix(".new"))
    target.with_suffix(".new").rename(target)
    shutil.rmtree(root)
    archive.unlink()
    raw.unlink()


def _configure(root: Path) -> None:
    (root / "etc/hostname").write_text("system\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost system\n")
    (root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 0\n")
    (root / "etc/machine-id").write_text("00000000000000000000000000000001\n")
    (root / "etc/exports").write_text("")
    control = root / "usr/local/sbin/control"
    control.write_text(CONTROL)
    control.chmod(0o755)
    units = root / "etc/systemd/system"
    (units / "control.service").write_text(CONTROL_UNIT)
    (root / "etc/systemd/network/lan.network").write_text(NETWORK)
    _enable(units, "multi-user.target", ["/etc/systemd/system/control.service"])
    _enable(units, "multi-user.target", ["/lib/systemd/system/systemd-networkd.service"])
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    # The NFS server is started by whoever needs it.
    (units / "multi-user.target.wants" / "nfs-server.service").unlink(missing_ok=True)


def _enable(units: Path, target: str, paths: Sequence[str]) -> None:
    wants = units / f"{target}.wants"
    wants.mkdir(exist_ok=True)
    for path in paths:
        link = wants / Path(path).name
        link.unlink(missing_ok=True)
        link.symlink_to(path)
