"""What a ledger costs when it knows a million entries, against ten thousand. The pool is full in both.

Each figure is the time inside one transaction, its commit left out: a disk's fsync is the same for both and would hide the
difference. Both are visited in turns, so that what else the machine does hits them alike.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TypeVar

from rich.console import Console
from rich.table import Table
from sqlalchemy import insert, update

from benchmarks.harness import WIDTH, Verdict, at_most, conclude
from stores.cache import ledger
from stores.cache.database import Transaction
from stores.cache.ledger import Facts, charge_of
from stores.cache.policy import Evict, Limits, Queue
from stores.cache.schema import EntryState, entries, pins, pools
from stores.cache.sqlite import SqliteDatabase

T = TypeVar("T")
SMALL, LARGE = 10_000, 1_000_000
ROUNDS = 300
OPENINGS = 30
UNIT = charge_of(4096)
BATCH = 10_000
PINNED = 10  # one entry in that many


@dataclass
class Full:
    """A pool with as many entries as it can hold. One in ten is pinned, and so is the oldest hundredth."""

    path: Path
    count: int
    database: SqliteDatabase
    turn: int = 0
    times: dict[str, list[float]] = field(default_factory=dict)

    async def fill(self) -> None:
        await self.database.transact(self._fill)

    def _fill(self, tx: Transaction) -> None:
        ledger.open_pool(tx, "p", self.count * UNIT)
        ledger.register(tx, "p", "o", host="h", boot="b", pid=1, lease_s=1e9)
        held = [number for number in range(self.count) if self._is_pinned(number)]
        for first in range(0, self.count, BATCH):
            rows = [self._row(number, tx.wall) for number in range(first, min(first + BATCH, self.count))]
            tx.connection.execute(insert(entries), rows)
        for first in range(0, len(held), BATCH):
            pinned = [
                {
                    "pool": "p",
                    "id": f"pin {number}",
                    "entry": number + 1,
                    "owner": None,
                    "reason": "r",
                    "since": tx.wall,
                }
                for number in held[first : first + BATCH]
            ]
            tx.connection.execute(insert(pins), pinned)
        once = sum(self._queue(number) is Queue.SMALL for number in range(self.count))
        sums = {"used": self.count * UNIT, "held": len(held) * UNIT, "small": once * UNIT, "entries": self.count}
        learned = {"next_turn": self.count, "horizon": -1, "recent": self.count * UNIT, "bias": 1.0}
        tx.connection.execute(update(pools).values(sums | learned))

    def _is_pinned(self, number: int) -> bool:
        return number % PINNED == 0 or number < self.count // 100

    def _queue(self, number: int) -> Queue:
        return Queue.SMALL if number % 3 else Queue.MAIN

    def _row(self, number: int, wall: float) -> dict[str, object]:
        return {
            "pool": "p",
            "key": f"{number:064x}",
            "file": f"{number:064x}.r",
            "store": "store",
            "ref": f"template/{number}",
            "version": '"etag"',
            "size": 4096,
            "charge": UNIT,
            "state": EntryState.READY,
            "evictor": None,
            "queue": self._queue(number),
            "turn": number,
            "hits": 0,
            "pins": int(self._is_pinned(number)),
            "digest": "sha256:0",
            "inode": number,
            "mtime_ns": 0,
            "published": wall,
            "used_at": wall,
            "proved_at": wall,
        }

    # ------------------------------------------------------------------------------- one of each, in this order

    async def touch(self, rng: random.Random) -> None:
        """A hit: looked up, counted, pinned."""
        key = f"{rng.randrange(self.count * 9 // 10, self.count):064x}"
        self.turn += 1
        pin = f"touch {self.turn}"
        await self._time("touch", lambda tx: ledger.look(tx, "p", key, owner="o", pin=pin, reason="r"))
        await self.database.transact(lambda tx: ledger.unpin(tx, "p", pin))

    async def replace(self, rng: random.Random) -> None:
        """A miss in a full pool: victims, their end, the reservation, the new entry."""
        name = f"new {self.turn} {rng.random()}"

        def request(tx: Transaction) -> ledger.Answer:
            return ledger.request(
                tx, "p", UNIT, reservation=name, owner="o", key=name, waiter=name, wait_s=1e9, min_age_s=0
            )

        answer = await self._time("pick victims", request)
        assert isinstance(answer.decision, Evict)
        assert len(answer.evict) == 1
        victim = answer.evict[0].id
        await self._time("strike out", lambda tx: ledger.evicted(tx, "p", [victim], owner="o"))
        await self._time("reserve", request)
        facts = Facts(name, "store", "ref", None, 4096, None, 1, 1)
        await self._time("publish", lambda tx: ledger.publish(tx, name, facts, owner="o", pin=name, reason="r"))
        await self._time("unpin", lambda tx: ledger.unpin(tx, "p", name))

    async def survey(self) -> None:
        limits = Limits(self.count * UNIT, high=2.0, max_idle_s=1e6, max_age_s=1e6)
        await self._time("look for overdue", lambda tx: ledger.relieve(tx, "p", limits, owner="o"))
        await self._time("reap", lambda tx: ledger.reap(tx, "p", owner="o"))
        await self._time("renew", lambda tx: ledger.renew(tx, "p", "o", 1e9))

    async def open_again(self) -> None:
        """Open the file, check the version, register, take over from the dead: what a start needs of the ledger."""

        def start(tx: Transaction) -> None:
            ledger.open_pool(tx, "p", self.count * UNIT)
            owner = f"o{time.perf_counter_ns()}"
            ledger.register(tx, "p", owner, host="h", boot="b", pid=1, lease_s=1e9)
            ledger.reap(tx, "p", owner=owner)
            ledger.retire(tx, "p", owner)

        started = time.perf_counter()
        database = SqliteDatabase(self.path)
        await database.transact(start)
        self.times.setdefault("open", []).append(time.perf_counter() - started)
        await database.aclose()

    async def _time(self, what: str, work: Callable[[Transaction], T]) -> T:
        """The work itself: from the transaction's begin to just before its commit."""

        def timed(tx: Transaction) -> T:
            started = time.perf_counter()
            result = work(tx)
            self.times.setdefault(what, []).append(time.perf_counter() - started)
            return result

        return await self.database.transact(timed)


async def measure() -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Medians in seconds by what was done, with few entries and with many."""
    directory = Path(tempfile.mkdtemp(prefix="ledger-", dir="/dev/shm"))
    try:
        async with AsyncExitStack() as stack:
            both = []
            for count in (SMALL, LARGE):
                path = directory / f"{count}.sqlite"
                database = SqliteDatabase(path)
                stack.push_async_callback(database.aclose)
                both.append(Full(path, count, database))
                await both[-1].fill()
            rng = random.Random(1)
            for _ in range(ROUNDS):
                for full in both:
                    await full.touch(rng)
                    await full.replace(rng)
                    await full.survey()
            for _ in range(OPENINGS):
                for full in both:
                    await full.open_again()
            few, many = ({what: median(times) for what, times in full.times.items()} for full in both)
            return few, many
    finally:
        shutil.rmtree(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    few, many = asyncio.run(measure())
    table = Table(title="one transaction, in ms, without its commit", title_justify="left")
    for column in ("", f"{SMALL:,} entries", f"{LARGE:,} entries", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    verdicts: list[Verdict] = []
    for what in few:
        ratio = many[what] / few[what]
        table.add_row(what, f"{1000 * few[what]:.2f}", f"{1000 * many[what]:.2f}", f"{ratio:.2f}")
        verdicts.append(at_most(f"{what}: 1,000,000 entries against 10,000", ratio, 1.5 if what == "open" else 3.0))
    Console(width=WIDTH).print(table)
    conclude(verdicts, {}, arguments.json)


if __name__ == "__main__":
    main()
