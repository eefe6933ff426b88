"""The cache under many requests: fifty at once for one template, and sixteen processes that want ten times what a pool holds.

    python -m benchmarks.cache [--size MIB] [--seconds N] [--disk DIRECTORY] [--json FILE]

Prints the verdict on each goal; exits 1 when a goal is missed. Everything is a ratio within one run, or a count.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from ipaddress import ip_network
from pathlib import Path

from benchmarks.bytes import make_object
from benchmarks.harness import Verdict, at_least, at_most, conclude
from stores.backends.http import HttpStore
from stores.cache.cache import Cache
from stores.cache.proxy import CachingStore
from stores.contract import Kind, MiB
from stores.settings import StoreSettings, UrlSettings
from stores.transfer.engine import TransferEngine
from tests.doubles.caches import nothing_left, pool_settings, running
from tests.doubles.hammer import Work, hammer, make_objects
from tests.servers import NginxServer, make_certificates, run_nginx

MANY = 50
HITS = 5
PROCESSES = 16
TIMES_TOO_MUCH = 10


class Template:
    """One object on nginx, and a fresh pool on a disk for each measurement."""

    def __init__(self, nginx: NginxServer, disk: Path, size: int) -> None:
        self._nginx = nginx
        self._disk = disk
        self._size = size

    async def timed(self, requests: int, *, name: str) -> tuple[float, float, float]:
        """Seconds for so many requests at once, and for one later; and how often each byte was fetched."""
        os.sync()
        urls = UrlSettings(allow_http=True, allow_networks=(ip_network("127.0.0.0/8"),), ports=(self._nginx.port,))
        engine = TransferEngine()
        store = HttpStore(self._nginx.url("bench"), StoreSettings(urls=urls), engine)
        settings = pool_settings(self._disk / name, room=self._size + 256 * MiB)
        logged = self._nginx.access_log.stat().st_size
        try:
            async with running(settings) as pool:
                cache = Cache([pool], engine)
                caching = CachingStore(store, cache, wait_s=60)
                began = time.perf_counter()
                await asyncio.gather(*(self._use(caching) for _ in range(requests)))
                all_s = time.perf_counter() - began
                began = time.perf_counter()
                for _ in range(HITS):
                    await self._use(caching)
                hit_s = (time.perf_counter() - began) / HITS
                await cache.aclose()
        finally:
            await store.aclose()
            await engine.aclose()
            for path in sorted(settings.directory.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        return all_s, hit_s, self._fetched(logged) / self._size

    async def _use(self, store: CachingStore) -> None:
        async with AsyncExitStack() as stack:
            info = await store.stat("object")
            await stack.enter_async_context(store.present(info, Kind.LOCAL_PATH))

    def _fetched(self, since: int) -> int:
        """Bytes of content that the server sent: the size of each answer to a GET, as its log has it. One byte is what it takes
        to look at an object, which every request does."""
        with self._nginx.access_log.open() as log:
            log.seek(since)
            lines = [line.split('"') for line in log if '"GET /bench/object' in line]
        return sum(count for line in lines if (count := int(line[2].split()[1])) > 1)


def herd(size: int, rounds: int, disk: Path) -> list[Verdict]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="cache-") as memory:
        Path(memory).chmod(0o755)
        with run_nginx(Path(memory), make_certificates(Path(memory))) as nginx:
            make_object(nginx.root / "bench" / "object", size)
            template = Template(nginx, disk, size)
            singles, manys, hits, fetched = [], [], [], []
            for turn in range(rounds):
                single_s, hit_s, _ = asyncio.run(template.timed(1, name=f"single{turn}"))
                many_s, _, times = asyncio.run(template.timed(MANY, name=f"many{turn}"))
                singles.append(single_s)
                manys.append(many_s)
                hits.append(hit_s)
                fetched.append(times)
    single_s, many_s, hit_s = (sorted(found)[rounds // 2] for found in (singles, manys, hits))
    return [
        at_least(f"{MANY} at once: bytes fetched by bytes of the object, least", min(fetched), 1.0),
        at_most(f"{MANY} at once: bytes fetched by bytes of the object, most", max(fetched), 1.0),
        at_most(f"{MANY} at once: time by that of a single fill", many_s / single_s, 1.3),
        at_least("time of a fill by that of a later hit", single_s / hit_s, 20),
    ]


def crowd(seconds: float, disk: Path) -> list[Verdict]:
    chance = random.Random(11)
    sizes = [chance.randint(256 * 1024, 8 * MiB) for _ in range(80)]
    make_objects(disk / "objects", sizes)
    settings = pool_settings(disk / "pool", room=sum(sizes) // TIMES_TOO_MUCH)
    work = Work(disk / "objects", settings, disk / "reports", seconds=seconds, deadline_s=30)
    findings = hammer(work, processes=PROCESSES, kill_every_s=1)

    async def leaked() -> int:
        async with running(settings) as pool:
            for _ in range(20):  # what the dead have left is removed as soon as they are known to be dead
                await asyncio.sleep(1)
                try:
                    await nothing_left(pool)
                except AssertionError:
                    continue
                return 0
            return 1

    outcomes = findings.outcomes
    title = f"{PROCESSES} processes, {findings.kills} killed"
    other = sum(count for outcome, count in outcomes.items() if outcome not in ("right", "no room", "WRONG", "LATE"))
    return [
        at_most(
            f"{title}: most bytes on disk by the limit, {findings.samples} samples",
            findings.largest / settings.limit,
            1.0,
        ),
        at_least(f"{title}: requests served right", outcomes["right"], 1),
        at_most(f"{title}: requests served wrong", outcomes["WRONG"], 0),
        at_most(f"{title}: requests that failed for another reason than room", other, 0),
        at_most(f"{title}: longest request by its deadline", findings.longest_s / work.deadline_s, 1.0),
        at_most(f"{title}: something leaked", asyncio.run(leaked()), 0),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, help="of the template, in MiB (default 2048)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60, help="of the processes' work (default 60)")
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a directory on a disk")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.disk, prefix="cache-") as disk:
        verdicts = crowd(options.seconds, Path(disk))
        verdicts += herd(options.size * MiB, options.rounds, Path(disk))
    conclude(verdicts, {}, options.json)
    return 0 if all(verdict.met for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
