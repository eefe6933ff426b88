"""Several processes share a ledger, and are killed at any moment."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

from sqlalchemy import func, select

from stores.cache import ledger
from stores.cache.database import Transaction
from stores.cache.schema import EntryState, entries, pins, reservations, waiters
from stores.cache.sqlite import SqliteDatabase
from tests.doubles.ledger_worker import LEASE_S, POOL, UNITS
from tests.ledgers import UNIT

PROCESSES = 4
KILLS = 8
TURNS = 20  # that the pool takes between two kills


async def test_nothing_is_lost_or_exceeded_when_processes_are_killed(tmp_path: Path) -> None:
    path, log = tmp_path / "ledger.sqlite", tmp_path / "log"
    rng = random.Random(7)
    database = SqliteDatabase(path)
    await database.transact(lambda tx: ledger.open_pool(tx, POOL, UNITS * UNIT))
    processes: list[subprocess.Popen[bytes]] = []
    turns: list[int] = []
    try:
        with log.open("wb") as output:
            processes += [_start(path, seed, output.fileno()) for seed in range(PROCESSES)]
            for seed in range(PROCESSES, PROCESSES + KILLS):
                goal = (turns[-1] if turns else 0) + TURNS
                while not turns or turns[-1] < goal:
                    await asyncio.sleep(0.02)
                    turns.append(await database.transact(_check))
                victim = processes.pop(rng.randrange(PROCESSES))
                assert victim.poll() is None, log.read_text()
                victim.kill()
                victim.wait()
                processes.append(_start(path, seed, output.fileno()))
    finally:
        for process in processes:
            process.kill()
            process.wait()

    def begin(tx: Transaction) -> None:
        ledger.register(tx, POOL, "last", host="h", boot="b", pid=1, lease_s=1e6)

    await database.transact(begin)
    await asyncio.sleep(LEASE_S)
    left = await database.transact(lambda tx: ledger.reap(tx, POOL, owner="last"))
    for filling in left.fillings:
        assert await database.transact(lambda tx, gone=filling.id: ledger.release(tx, gone, owner="last"))  # type: ignore[misc]
    gone = [entry.id for entry in left.leaving]
    await database.transact(lambda tx: ledger.evicted(tx, POOL, gone, owner="last"))
    await database.transact(_check)
    assert await database.transact(_left) == (0, 0, 0, 0)
    await database.aclose()


def _start(path: Path, seed: int, output: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "tests.doubles.ledger_worker", str(path), str(seed)]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def _check(tx: Transaction) -> int:
    """The bound and the sums, at this moment; returns how far the pool's turns are."""
    says, comes_to = ledger.check_sums(tx, POOL)
    assert says == comes_to
    assert says.used + says.reserved <= UNITS * UNIT
    return ledger.pool_state(tx, POOL).turn


def _left(tx: Transaction) -> tuple[int, ...]:
    leaving = select(func.count()).select_from(entries).where(entries.c.state == EntryState.EVICTING)
    return tuple(
        int(tx.connection.execute(query).scalar_one())
        for query in (leaving, *(select(func.count()).select_from(table) for table in (pins, reservations, waiters)))
    )
