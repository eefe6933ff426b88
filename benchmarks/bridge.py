"""What the bridge costs: a raw object becomes qcow2, read through the bridge and by qemu-img's own HTTP driver.

    python -m benchmarks.bridge [--rounds N] [--directory DIRECTORY] [--json FILE]

Neither contestant syncs, and neither checks anything: it is the way of the bytes that is compared. What they wrote is compared
with the original, off the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.harness import Contestant, Sample, at_least, at_most, compare, conclude, measured, show
from benchmarks.image import make_images
from stores.bridge import serve
from stores.contract import ObjectInfo
from stores.transfer.engine import TransferEngine
from stores.transfer.http import HttpRangeReader, HttpTarget
from tests.servers import make_certificates, run_nginx

CONVERT = ("qemu-img", "convert", "-t", "none", "-W", "-m", "8", "-f", "raw", "-O", "qcow2")


async def through_bridge(url: str, size: int, output: str) -> Mapping[str, float]:
    parts = urlsplit(url)
    where = HttpTarget(parts.hostname or "", parts.port or 80, parts.hostname or "", None, parts.path)

    async def to() -> HttpTarget:
        return where

    lags: list[float] = []

    async def meter() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.002)
            lags.append(time.perf_counter() - began - 0.002)

    engine = TransferEngine()
    with tempfile.TemporaryDirectory(prefix="nbd") as directory:
        socket = Path(directory) / "s" / "nbd.sock"
        async with serve(HttpRangeReader(engine, ObjectInfo("object", size), to), socket):
            watch = asyncio.create_task(meter())
            process = await asyncio.create_subprocess_exec(*CONVERT, f"nbd+unix:///?socket={socket}", output)
            status = await process.wait()
            watch.cancel()
    await engine.aclose()
    if status:
        raise SystemExit(status)
    return {"lag_p99_ms": sorted(lags)[len(lags) * 99 // 100] * 1000, "lag_max_ms": max(lags) * 1000}


def contestants(url: str, size: int, output: str) -> list[Contestant]:
    bridge = [sys.executable, "-m", "benchmarks.bridge", "--through", url, str(size), output]
    return [
        Contestant("bridge", bridge),
        Contestant("qemu-img from a URL", [*CONVERT, url, output]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path("build/bench"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--through", nargs=3, metavar=("URL", "SIZE", "OUTPUT"), help="be a contestant")
    options = parser.parse_args()
    if options.through:
        url, size, output = options.through
        measured(lambda: asyncio.run(through_bridge(url, int(size), output)))
        return
    raw, _ = make_images(options.directory)
    size = raw.stat().st_size
    with (
        tempfile.TemporaryDirectory(dir=options.directory.resolve()) as work,
        run_nginx(Path(work), make_certificates(Path(work))) as nginx,
    ):
        (nginx.root / "disk.raw").symlink_to(raw.resolve())
        volume = Path(work) / "volume.qcow2"

        def check(_: Contestant, sample: Sample) -> None:
            if not sample.stalled:
                compared = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(raw), str(volume)]
                subprocess.run(compared, check=True, stdout=subprocess.DEVNULL)
            volume.unlink(missing_ok=True)

        racing = contestants(nginx.url("disk.raw"), size, str(volume))
        rows = compare(racing, rounds=options.rounds, after=check)
    show("raw object on nginx -> qcow2", rows, size=size)
    verdicts = [
        at_most("time through the bridge / time from the URL", rows[0].wall_s / rows[1].wall_s, 1.3),
        at_least("CPU from the URL / CPU through the bridge", rows[1].cpu_s / rows[0].cpu_s, 0.5),
        at_most("event-loop lag p99, ms", rows[0].extra["lag_p99_ms"], 20),
    ]
    conclude(verdicts, {"bridge": rows}, options.json)
    sys.exit(0 if all(verdict.met for verdict in verdicts) else 1)


if __name__ == "__main__":
    main()
