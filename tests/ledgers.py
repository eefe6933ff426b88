"""A ledger to try, on SQLite and on PostgreSQL, with clocks that the test sets."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from stores.cache import ledger
from stores.cache.database import Database, Transaction
from stores.cache.ledger import Answer, Entry, Facts, charge_of
from stores.cache.policy import Grant
from stores.cache.postgres import PostgresDatabase
from stores.cache.schema import metadata, versions
from stores.cache.sqlite import SqliteDatabase
from stores.secret import Secret
from tests.postgres import PASSWORD, Postgres

T = TypeVar("T")
POOL = "pool"
LEASE_S = 30.0
SIZE = 4096
UNIT = charge_of(SIZE)  # what most objects of these tests are charged


class Book:
    """Transactions of one pool, at the time that the test says."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = 1000.0
        self.wall = 1_700_000_000.0

    async def do(self, work: Callable[[Transaction], T]) -> T:
        return await self.database.transact(lambda tx: work(replace(tx, now=self.now, wall=self.wall)))

    async def open(self, units: int) -> None:
        await self.do(lambda tx: ledger.open_pool(tx, POOL, units * UNIT))

    async def register(self, owner: str, *, boot: str = "boot 1", lease_s: float = LEASE_S) -> str:
        await self.do(lambda tx: ledger.register(tx, POOL, owner, host="host", boot=boot, pid=1, lease_s=lease_s))
        return owner

    async def request(self, name: str, owner: str, *, units: int = 1, min_age_s: float = 0.0) -> Answer:
        """Room for the object `name`, as the reservation `r-name`, and in line as `w-name`."""
        return await self.do(
            lambda tx: ledger.request(
                tx,
                POOL,
                units * UNIT,
                reservation=f"r-{name}",
                owner=owner,
                key=name,
                waiter=f"w-{name}",
                wait_s=60.0,
                min_age_s=min_age_s,
            )
        )

    async def wait(self, name: str, owner: str, *, units: int = 1, wait_s: float = 9.0) -> int:
        """In line as `w-name`."""
        return await self.do(
            lambda tx: ledger.wait_in_line(tx, POOL, units * UNIT, waiter=f"w-{name}", owner=owner, wait_s=wait_s)
        )

    async def publish(self, name: str, owner: str, *, size: int = SIZE, dirty: bool = False) -> Entry:
        """Pinned as `p-name`."""
        facts = Facts(name, "store", f"ref of {name}", '"etag"', size, "sha256", 11, 12)
        return await self.do(
            lambda tx: ledger.publish(tx, f"r-{name}", facts, owner=owner, pin=f"p-{name}", reason="fill", dirty=dirty)
        )

    async def unpin(self, pin: str) -> bool:
        return await self.do(lambda tx: ledger.unpin(tx, POOL, pin))

    async def have(self, name: str, owner: str) -> Entry:
        """An entry that nobody holds."""
        while True:
            answer = await self.request(name, owner)
            if answer.decision == Grant():
                break
            assert answer.evict, answer
            await self.finish(answer.evict, owner)
        await self.publish(name, owner)
        await self.unpin(f"p-{name}")
        found = await self.entry(name)
        assert found is not None
        return found

    async def finish(self, entries: tuple[Entry, ...], owner: str) -> int:
        return await self.do(lambda tx: ledger.evicted(tx, POOL, [entry.id for entry in entries], owner=owner))

    async def entry(self, name: str) -> Entry | None:
        return await self.do(lambda tx: ledger.entry(tx, POOL, name))

    async def look(self, name: str, owner: str, pin: str) -> ledger.Found:
        return await self.do(lambda tx: ledger.look(tx, POOL, name, owner=owner, pin=pin, reason="read"))

    async def sums(self) -> ledger.Sums:
        """What the pool's row says, after a look at whether that is true."""
        says, comes_to = await self.do(lambda tx: ledger.check_sums(tx, POOL))
        assert says == comes_to
        return says


@asynccontextmanager
async def sqlite_book(directory: Path) -> AsyncIterator[Book]:
    database = SqliteDatabase(directory / "ledger.sqlite")
    try:
        yield Book(database)
    finally:
        await database.aclose()


@asynccontextmanager
async def postgres_book(server: Postgres, name: str) -> AsyncIterator[Book]:
    database = PostgresDatabase(server.url(name), POOL, password=Secret(PASSWORD))
    try:
        yield Book(database)
    finally:
        await database.aclose()


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder that costs no waiting for a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as found:
        yield Path(found)


@pytest.fixture(scope="session")
def ledger_database(postgres: Postgres) -> str:
    """One for all tests of ledgers, who empty it first: a database of its own for each would be most of their time."""
    postgres.sql("CREATE DATABASE ledgers")
    return "ledgers"


def _empty(tx: Transaction) -> None:
    for table in reversed(metadata.sorted_tables):
        if table is not versions:
            tx.connection.execute(table.delete())


@pytest.fixture(params=["sqlite", "postgres"])
async def book(request: pytest.FixtureRequest, memory: Path) -> AsyncIterator[Book]:
    """A pool of ten units, and its owner `a`."""
    if request.param == "sqlite":
        opened = sqlite_book(memory)
    else:
        opened = postgres_book(request.getfixturevalue("postgres"), request.getfixturevalue("ledger_database"))
    async with opened as found:
        await found.do(_empty)
        await found.open(10)
        await found.register("a")
        yield found
