"""Backups of a volume that a guest writes to all the while, against those of one that nobody has open.

    python -m benchmarks.live [--rounds N] [--json FILE]

A real libvirt has the guest, without KVM. In all runs it writes blocks of 64 KiB past its page cache, one after another,
and says how long the longest took. The server throws away what it is sent; `tests/flows/test_kvm_live.py` proves that backups
are of one moment.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from benchmarks.backup import Bench, Volume, take_snapshots
from benchmarks.disk import ram_disk
from benchmarks.harness import Contestant, Verdict, at_least, at_most, conclude, run_once
from benchmarks.sink import forget, run_sink, size_of
from stores.contract import GiB, KiB, MiB
from tests.guest import build_initramfs, fetch_kernel
from tests.kvm_machines import DRIVERS, ROOT, SCRIPT, Console, Lab, build_writer, until
from tests.libvirtd import Libvirtd
from tests.servers import make_certificates

BLOCK = 64 * KiB
BLOCKS = 256
PAUSE_US = 2000
SIZE = 1 * GiB
VM = "guest"


class Guest:
    """A machine that writes to a volume."""

    def __init__(self, lab: Lab, volume: Volume) -> None:
        self._console = Console(lab.console_of(VM))
        self._console.wait("READY")
        lab.domain(VM).attachDevice(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' discard='unmap'/>"
            f"<source file='{volume.path}'/><target dev='vda' bus='virtio'/></disk>"
        )
        until(lambda: self._console.ask("disks", "DISKS"))
        self._console.ask(f"keep-writing vda {BLOCKS} {PAUSE_US}", "WRITING")

    def longest_ms(self) -> float:
        """That one write took since this was last asked."""
        _, longest, failed = self._console.ask("written", "WRITTEN")
        if failed != "0":
            raise RuntimeError(f"{failed} writes of the guest failed")
        return int(longest) / 1000

    def written(self) -> int:
        return int(self._console.ask("written", "WRITTEN")[0])


@contextmanager
def running(volume: Volume) -> Iterator[tuple[Guest, str]]:
    """And the URI of its libvirt."""
    with tempfile.TemporaryDirectory(prefix="live-") as folder:
        daemon = Libvirtd(Path(folder))
        daemon.start()
        try:
            kernel, work = fetch_kernel(ROOT / "build" / "guest" / "kernel"), Path(folder) / "work"
            work.mkdir()
            script = SCRIPT.format(modules=" ".join(DRIVERS))
            lab = Lab(daemon, kernel, build_initramfs(kernel, work, script, DRIVERS, [build_writer(work)]))
            lab.define(VM, system=True).create()
            try:
                yield Guest(lab, volume), daemon.uri
            finally:
                lab.remove(VM)
                lab.connection.close()
        finally:
            daemon.stop()


def make_volume(path: Path) -> None:
    """With incompressible data in all of it."""
    with tempfile.NamedTemporaryFile(dir=path.parent) as raw:
        for _ in range(SIZE // (64 * MiB)):
            raw.write(os.urandom(64 * MiB))
        raw.flush()
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw.name, str(path)], check=True)


def live(bench: Bench, volume: Volume, name: str, parent: str | None = None) -> Contestant:
    """A backup of the volume as it is when this begins."""
    return bench.copying(name, volume.itself(), volume, name, parent)


def compare(bench: Bench, guest: Guest, cold: Volume, hot: Volume, rounds: int) -> list[Verdict]:
    took: dict[str, list[float]] = {"stopped": [], "live": [], "incremental": []}
    stalls: dict[str, list[float]] = {"otherwise": [], "in a backup": []}
    sent = 0
    for turn in range(rounds):
        took["stopped"].append(run_once(bench.agent("stopped", cold, "first")).wall_s)
        forget(bench.sink, cold.key("first"), f"{cold.key('first')}.manifest.json")
        guest.longest_ms()
        took["live"].append(run_once(live(bench, hot, f"full-{turn}")).wall_s)
        stalls["in a backup"].append(guest.longest_ms())
        time.sleep(took["live"][-1])
        stalls["otherwise"].append(guest.longest_ms())
        before = guest.written()
        until(lambda before=before: guest.written() > before + BLOCKS)  # type: ignore[misc]
        took["incremental"].append(run_once(live(bench, hot, f"delta-{turn}", f"full-{turn}")).wall_s)
        sent = max(sent, size_of(bench.sink, hot.key(f"delta-{turn}")))
    for name, walls in took.items():
        print(f"{name}: {median(walls):.2f} s ({min(walls):.2f}-{max(walls):.2f})")
    for name, longest in stalls.items():
        print(f"longest write of the guest, {name}: {', '.join(f'{each:.0f}' for each in longest)} ms")
    more = [during - usual for during, usual in zip(stalls["in a backup"], stalls["otherwise"], strict=True)]
    print(f"{SIZE / GiB:.1f} GiB; changed {BLOCKS * BLOCK / GiB:.3f} GiB")
    return [
        at_least("live full backup: rate / of a stopped one", median(took["stopped"]) / median(took["live"]), 0.7),
        at_most("live full backup: the guest's longest write, ms more than without", median(more), 250),
        at_most("live incremental: bytes sent / changed", sent / (BLOCKS * BLOCK), 1.1),
        at_least(
            "live: time of a full backup / of an incremental", median(took["live"]) / median(took["incremental"]), 2
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with ExitStack() as stack:
        work = stack.enter_context(ram_disk(8 * GiB))
        servers = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="live-")))
        sink = stack.enter_context(run_sink(servers, make_certificates(servers)))
        bench = Bench(work, sink)
        cold, hot = bench.volume("cold"), bench.volume("hot")
        make_volume(cold.path)
        subprocess.run(["cp", str(cold.path), str(hot.path)], check=True)
        asyncio.run(take_snapshots(work, cold.snapshot("first")))
        guest, uri = stack.enter_context(running(hot))
        bench.settle(libvirt=uri)
        verdicts = compare(bench, guest, cold, hot, options.rounds)
    conclude(verdicts, {}, options.json)
    return 0 if all(verdict.met for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
