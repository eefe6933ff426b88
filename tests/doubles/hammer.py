"""Many processes that want more of one pool than it holds, and one of them killed again and again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import structlog

from stores.backends.filesystem import FilesystemStore
from stores.cache.cache import Cache
from stores.cache.ladder import CacheExhausted
from stores.cache.pool import PoolSettings
from stores.cache.proxy import CachingStore
from stores.contract import Kind, LocalPath
from stores.errors import StorageError
from stores.transfer.engine import TransferEngine
from tests.doubles.caches import blocks_in, running
from tests.doubles.gated import GatedStore
from tests.processes import forking


@dataclass(frozen=True)
class Work:
    """What each process does: ask for one object after the other until `seconds` are over, from the first answer on.

    `patience_s` is how long a request may wait for room, `deadline_s` after what it must be over whatever happens.
    """

    objects: Path  # files called `<number>.<sha256 of the content>`
    pool: PoolSettings
    reports: Path
    seconds: float
    patience_s: float = 3.0
    deadline_s: float = 20.0

    @property
    def over(self) -> Path:
        """A file that ends the work. No lock: one who is killed would keep it."""
        return self.reports.with_suffix(".over")


@dataclass
class Findings:
    """`largest`: most bytes on disk that were seen in the pool's directory."""

    largest: int = 0
    samples: int = 0
    kills: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0


def make_objects(directory: Path, sizes: list[int]) -> None:
    directory.mkdir()
    for number, size in enumerate(sizes):
        data = random.Random(number).randbytes(size)
        (directory / f"{number}.{hashlib.sha256(data).hexdigest()}").write_bytes(data)


def hammer(work: Work, *, processes: int, kill_every_s: float, seed: int = 1) -> Findings:
    """Runs in the calling thread until all is over."""
    chance = random.Random(seed)
    context = forking()
    findings = Findings()
    work.reports.mkdir()
    started = 0

    def start() -> ForkServerProcess:
        nonlocal started
        started += 1
        process = context.Process(target=_live, args=(work, started))
        process.start()
        return process

    with _sampling(work.pool.directory, findings):
        alive = [start() for _ in range(processes)]
        _wait_for_an_answer(work)
        ends = time.monotonic() + work.seconds
        while time.monotonic() < ends - kill_every_s:
            time.sleep(kill_every_s)
            victim = chance.randrange(processes)
            os.kill(alive[victim].pid or 0, signal.SIGKILL)
            alive[victim].join()
            findings.kills += 1
            alive[victim] = start()
        work.over.touch()
        for process in alive:
            process.join(work.deadline_s + 60)
            if process.exitcode != 0:
                process.kill()
                raise AssertionError(f"a process ended with {process.exitcode}")
    for report in work.reports.iterdir():
        for line in report.read_text().splitlines():
            outcome, seconds = json.loads(line)
            findings.outcomes[outcome] += 1
            findings.longest_s = max(findings.longest_s, seconds)
    return findings


def _wait_for_an_answer(work: Work) -> None:
    """How long processes take to start says nothing of the pool."""
    late = time.monotonic() + 60
    while not any(report.stat().st_size for report in work.reports.iterdir()):
        assert time.monotonic() < late, "no process came to work"
        time.sleep(0.02)


@contextmanager
def _sampling(directory: Path, findings: Findings) -> Iterator[None]:
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.02):
            if directory.exists():
                findings.largest = max(findings.largest, blocks_in(directory))
                findings.samples += 1

    sampler = threading.Thread(target=sample, name="sampler")
    sampler.start()
    try:
        yield
    finally:
        over.set()
        sampler.join()


def _live(work: Work, number: int) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    asyncio.run(_want(work, random.Random(number), work.reports / str(number)))


async def _want(work: Work, chance: random.Random, report: Path) -> None:
    refs = sorted(os.listdir(work.objects))
    engine = TransferEngine()
    inner = FilesystemStore(work.objects, engine, id="objects", allowed=[work.objects])
    try:
        async with running(work.pool) as pool:
            cache = Cache([pool], engine)
            store = CachingStore(GatedStore(inner), cache, wait_s=work.patience_s)
            with report.open("a") as lines:
                while not work.over.exists():
                    began = time.monotonic()
                    outcome = await _ask(store, chance.choice(refs), work.deadline_s)
                    lines.write(json.dumps([outcome, time.monotonic() - began]) + "\n")
                    lines.flush()
            await cache.aclose()
    finally:
        await engine.aclose()


async def _ask(store: CachingStore, ref: str, deadline_s: float) -> str:
    try:
        async with asyncio.timeout(deadline_s):
            async with store.present(await store.stat(ref), Kind.LOCAL_PATH) as shown:
                assert isinstance(shown, LocalPath)
                found = hashlib.sha256(await asyncio.to_thread(shown.path.read_bytes)).hexdigest()
            return "right" if ref.endswith(found) else "WRONG"
    except CacheExhausted:
        return "no room"
    except TimeoutError:
        return "LATE"
    except StorageError as error:
        return f"{error.kind}: {error.message}"
