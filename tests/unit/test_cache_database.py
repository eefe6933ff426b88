"""What a transaction promises, on both databases: whole or not at all, whoever is cancelled and whatever breaks."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import event, text

from stores.cache import ledger, sqlite
from stores.cache.database import LedgerDamaged, Transaction
from stores.cache.policy import Grant
from stores.cache.postgres import SESSION, PostgresDatabase
from stores.cache.sqlite import SqliteDatabase
from stores.errors import AccessDenied, DeviceFault, NoSpace, StoreError, Unavailable
from stores.secret import Secret
from tests.doubles.mounts import mounted_tmpfs
from tests.ledgers import POOL, UNIT, Book, sqlite_book
from tests.postgres import PASSWORD, Postgres


def limit(tx: Transaction) -> int:
    return ledger.pool_state(tx, POOL).limit


class Refused(StoreError):
    """A test's own."""


async def test_what_raises_is_undone_alone(book: Book) -> None:
    def work(number: int, tx: Transaction) -> None:
        ledger.open_pool(tx, f"pool {number}", number)
        if number % 3 == 0:
            raise Refused(f"{number}")

    tasks = [book.do(partial(work, number)) for number in range(30)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [number for number, outcome in enumerate(outcomes) if isinstance(outcome, Refused)] == list(range(0, 30, 3))
    known = await book.do(lambda tx: tx.connection.execute(text("SELECT id FROM pools")).scalars().all())
    assert set(known) == {POOL} | {f"pool {number}" for number in range(30) if number % 3}


async def test_a_statement_that_fails_is_undone_alone(book: Book) -> None:
    def broken(tx: Transaction) -> None:
        ledger.open_pool(tx, "half", 1)
        ledger.register(tx, POOL, "a", host="h", boot="b", pid=1, lease_s=1)  # there is one of that name

    bad, good = await asyncio.gather(
        book.do(broken), book.do(lambda tx: ledger.open_pool(tx, "good", 1)), return_exceptions=True
    )
    assert isinstance(bad, StoreError)
    assert good is None
    known = await book.do(lambda tx: tx.connection.execute(text("SELECT id FROM pools")).scalars().all())
    assert set(known) == {POOL, "good"}


async def test_a_cancelled_transaction_is_whole_and_over_before_the_next(book: Book) -> None:
    began, go_on = threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(tx: Transaction) -> None:
        ledger.open_pool(tx, "one", 1)
        began.set()
        if isinstance(book.database, SqliteDatabase):
            go_on.wait(30)  # the loop runs on meanwhile
        ledger.open_pool(tx, "two", 1)

    task = asyncio.ensure_future(book.do(slow))
    while not began.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    loop.call_later(0.05, go_on.set)
    await asyncio.wait([task])
    known = await book.do(lambda tx: tx.connection.execute(text("SELECT id FROM pools")).scalars().all())
    assert set(known) in ({POOL, "one", "two"}, {POOL})
    assert task.cancelled() or "two" in known  # a server may be done with it before the word reaches it


async def test_cancelled_failures_are_not_reported_to_nobody(book: Book) -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    def fail(tx: Transaction) -> None:
        raise Refused("no")

    tasks = [asyncio.ensure_future(book.do(fail)) for _ in range(20)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError | Refused) for outcome in outcomes)
    assert await book.do(limit) == 10 * UNIT
    del tasks, outcomes
    await asyncio.sleep(0)
    assert reported == []


async def test_those_who_wait_together_share_a_commit(tmp_path: Path) -> None:
    async with sqlite_book(tmp_path) as book:
        await book.open(10)
        commits = 0

        def count(connection: object) -> None:
            nonlocal commits
            commits += 1

        await book.do(lambda tx: event.listen(tx.connection, "commit", count))
        before = commits
        await asyncio.gather(*(book.do(limit) for _ in range(500)))
        assert commits - before <= 20


async def test_two_databases_on_one_file_take_turns(tmp_path: Path) -> None:
    async with sqlite_book(tmp_path) as one, sqlite_book(tmp_path) as two:
        await one.open(50)
        await one.register("a")
        await two.register("b")
        answers = await asyncio.gather(
            *(
                book.request(f"{owner}{number}", owner)
                for book, owner in ((one, "a"), (two, "b"))
                for number in range(40)
            )
        )
        assert sum(answer.decision == Grant() for answer in answers) == 50
        assert (await one.sums()).reserved == 50 * UNIT


async def test_a_file_that_is_busy_for_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.05)
    async with sqlite_book(tmp_path) as book:
        await book.open(10)
        other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable):
                await book.do(limit)
        finally:
            other.close()
        assert await book.do(limit) == 10 * UNIT


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"something else entirely" * 100)
    async with sqlite_book(tmp_path) as book:
        for _ in range(2):
            with pytest.raises(LedgerDamaged):
                await book.open(10)


async def test_a_damaged_file(tmp_path: Path) -> None:
    async with sqlite_book(tmp_path) as book:
        await book.open(10)
    path = tmp_path / "ledger.sqlite"
    content = bytearray(path.read_bytes())
    content[100:] = bytes(len(content) - 100)
    path.write_bytes(content)
    async with sqlite_book(tmp_path) as book:
        with pytest.raises(DeviceFault):
            await book.do(limit)


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    async with sqlite_book(tmp_path / "missing") as book:
        with pytest.raises(DeviceFault):
            await book.open(10)


async def test_a_full_disk_undoes_everything_and_is_survived(tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "pool", options="size=512k") as directory:
        async with sqlite_book(directory) as book:
            await book.open(10)
            filler = directory / "filler"
            free = os.statvfs(directory)
            filler.write_bytes(bytes(free.f_bavail * free.f_frsize))

            def much(tx: Transaction) -> None:
                for number in range(3000):
                    ledger.open_pool(tx, f"{number:0>300}", 1)

            with pytest.raises(NoSpace):
                await book.do(much)
            filler.unlink()
            count = text("SELECT count(*) FROM pools")
            assert await book.do(lambda tx: tx.connection.execute(count).scalar_one()) == 1


async def test_closing_leaves_no_thread(tmp_path: Path) -> None:
    async with sqlite_book(tmp_path) as book:
        await book.open(10)
        assert [thread for thread in threading.enumerate() if thread.name == "cache-ledger"]
        await book.database.aclose()
        await book.database.aclose()
        deadline = time.monotonic() + 10
        while [thread for thread in threading.enumerate() if thread.name == "cache-ledger"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)


# ----------------------------------------------------------------------------------------------------- PostgreSQL


async def test_a_wrong_password_is_told_without_it(postgres: Postgres, postgres_database: str) -> None:
    database = PostgresDatabase(postgres.url(postgres_database), POOL, password=Secret("not this one"))
    try:
        with pytest.raises(AccessDenied) as refusal:
            await database.transact(limit)
    finally:
        await database.aclose()
    assert "not this one" not in repr(refusal.value)
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("what", ["port", "database"])
async def test_a_server_or_database_that_is_not_there(postgres: Postgres, what: str) -> None:
    url = postgres.url("missing") if what == "database" else "postgresql+asyncpg://postgres@127.0.0.1:1/postgres"
    database = PostgresDatabase(url, POOL, password=Secret(PASSWORD))
    try:
        with pytest.raises(Unavailable):
            await database.transact(limit)
    finally:
        await database.aclose()


async def test_connections_that_the_server_ended_are_made_again(postgres: Postgres, postgres_database: str) -> None:
    database = PostgresDatabase(postgres.url(postgres_database), POOL, password=Secret(PASSWORD))
    try:
        await database.transact(lambda tx: ledger.open_pool(tx, POOL, 7))
        postgres.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{postgres_database}'")
        assert await database.transact(limit) == 7

        def suicide(tx: Transaction) -> None:
            ledger.open_pool(tx, POOL, 8)
            tx.connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

        with pytest.raises(Unavailable):
            await database.transact(suicide)
        assert await database.transact(limit) == 7
    finally:
        await database.aclose()


async def test_pools_of_one_server_do_not_wait_for_each_other(
    postgres: Postgres, postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SESSION, "lock_timeout", "300ms")
    url, password = postgres.url(postgres_database), Secret(PASSWORD)
    one, same, other = (PostgresDatabase(url, pool, password=password) for pool in ("one", "one", "other"))
    try:
        await one.transact(lambda tx: ledger.open_pool(tx, "one", 1))
        await same.transact(lambda tx: ledger.open_pool(tx, "one", 1))
        await other.transact(lambda tx: ledger.open_pool(tx, "other", 1))
        hold = asyncio.ensure_future(one.transact(lambda tx: tx.connection.execute(text("SELECT pg_sleep(1)")).all()))
        await asyncio.sleep(0.2)
        await other.transact(lambda tx: ledger.open_pool(tx, "other", 2))
        assert not hold.done()
        with pytest.raises(Unavailable):
            await same.transact(lambda tx: ledger.open_pool(tx, "one", 2))
        await hold
    finally:
        for database in (one, same, other):
            await database.aclose()
