"""The ledger's tables: versions, and that no question reads a table from end to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, event, inspect, text

from stores.cache import ledger
from stores.cache.database import Transaction
from stores.cache.ledger import Facts, uploads
from stores.cache.policy import Grant, Limits
from stores.cache.postgres import PostgresDatabase
from stores.cache.schema import MIGRATIONS, LedgerTooNew, UploadState, metadata, migrate
from stores.cache.sqlite import SqliteDatabase
from stores.errors import Retry
from stores.secret import Secret
from tests.ledgers import POOL, SIZE, UNIT, Book, sqlite_book
from tests.postgres import PASSWORD, Postgres


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.begin() as opened:
        yield opened
    engine.dispose()


def version(connection: Connection) -> int:
    return int(connection.execute(text("SELECT version FROM ledger_version")).scalar_one())


def test_a_new_database_gets_every_table(connection: Connection) -> None:
    migrate(connection)
    assert set(inspect(connection).get_table_names()) >= set(metadata.tables)
    assert version(connection) == len(MIGRATIONS)


def test_migrating_again_changes_nothing(connection: Connection) -> None:
    migrate(connection)
    connection.execute(text("INSERT INTO pools VALUES ('p', 1, 0, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0)"))
    migrate(connection)
    assert connection.execute(text("SELECT count(*) FROM pools")).scalar_one() == 1


def test_an_older_database_is_brought_forward_step_by_step(connection: Connection) -> None:
    migrate(connection)
    done = []
    steps = (*MIGRATIONS, lambda _: done.append("second"), lambda _: done.append("third"))
    migrate(connection, steps)
    assert done == ["second", "third"]
    assert version(connection) == len(steps)
    migrate(connection, steps)
    assert done == ["second", "third"]


def test_a_newer_database_is_refused_and_left_alone(connection: Connection) -> None:
    migrate(connection, (*MIGRATIONS, lambda _: None))
    with pytest.raises(LedgerTooNew) as refusal:
        migrate(connection)
    assert refusal.value.retry is Retry.OPERATOR
    assert version(connection) == len(MIGRATIONS) + 1


async def test_a_step_that_fails_leaves_the_old_version(tmp_path: Path) -> None:
    def broken(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE half (done INTEGER)"))
        raise RuntimeError

    async with sqlite_book(tmp_path) as book:
        await book.open(1)
        with pytest.raises(RuntimeError):
            await book.do(lambda tx: migrate(tx.connection, (*MIGRATIONS, broken)))
        assert await book.do(lambda tx: version(tx.connection)) == len(MIGRATIONS)
        assert not await book.do(lambda tx: inspect(tx.connection).has_table("half"))


async def test_hosts_that_open_a_new_database_at_once_make_it_once(postgres: Postgres, postgres_database: str) -> None:
    url, password = postgres.url(postgres_database), Secret(PASSWORD)
    hosts = [PostgresDatabase(url, f"pool {number}", password=password) for number in range(6)]
    try:
        versions = await asyncio.gather(*(host.transact(lambda tx: version(tx.connection)) for host in hosts))
    finally:
        for host in hosts:
            await host.aclose()
    assert versions == [len(MIGRATIONS)] * 6


async def test_every_query_uses_an_index(tmp_path: Path) -> None:
    asked: dict[str, tuple[object, ...]] = {}
    database = SqliteDatabase(tmp_path / "ledger.sqlite")
    book = Book(database)

    def listen(tx: Transaction) -> None:
        @event.listens_for(tx.connection, "before_cursor_execute")
        def _asked(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
            assert isinstance(parameters, tuple)
            if statement.startswith(("SELECT", "UPDATE", "DELETE", "INSERT")):
                asked.setdefault(statement, parameters)

    def explain(tx: Transaction) -> dict[str, list[str]]:
        raw = tx.connection.connection.dbapi_connection
        assert raw is not None
        return {
            statement: [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            for statement, parameters in list(asked.items())
        }

    try:
        await book.open(10)
        await book.do(listen)
        await everything(book)
        plans = await book.do(explain)
    finally:
        await database.aclose()
    assert len(plans) > 40
    slow = {
        statement: steps
        for statement, steps in plans.items()
        if any(("SCAN" in step and "CONSTANT ROW" not in step) or "TEMP B-TREE" in step for step in steps)
    }
    assert not slow, "\n".join(f"{statement}: {steps}" for statement, steps in slow.items())


async def everything(book: Book) -> None:
    """All that a pool does from day to day; not the checks that read all there is."""
    await book.open(10)
    for owner in "abc":
        await book.register(owner)
    bad = await book.have("bad", "a")
    await book.do(lambda tx: ledger.quarantine(tx, POOL, bad.id))
    for number in range(25):
        await book.have(f"{number}", "a")
    entry = await book.have("24", "a") if await book.entry("24") is None else await book.entry("24")
    assert entry is not None
    await book.look("24", "a", "reader")
    await book.do(lambda tx: ledger.pin(tx, POOL, entry.id, pin="vm", owner="b", reason="r"))
    await book.do(lambda tx: ledger.proved(tx, POOL, entry.id, "digest"))
    await book.do(lambda tx: ledger.unproved(tx, POOL, before=book.wall + 1, limit=3))
    limits = Limits(10 * UNIT, high=0.5, low=0.4, max_idle_s=1.0, max_age_s=1.0)
    relief = await book.do(lambda tx: ledger.relieve(tx, POOL, limits, owner="b"))
    await book.do(lambda tx: ledger.spare(tx, POOL, [relief.entries[0].id], owner="b"))
    await book.finish(relief.entries, "b")
    await book.request("x", "b")
    await book.do(lambda tx: ledger.grow(tx, "r-x", UNIT, owner="b"))
    await book.do(lambda tx: ledger.note_progress(tx, "r-x", owner="b", arrived=1, parts=""))
    await book.do(lambda tx: ledger.filling(tx, POOL, "x"))
    await book.wait("y", "b")
    await book.do(lambda tx: ledger.leave(tx, "w-y"))
    await book.wait("z", "b")
    await book.do(lambda tx: ledger.retire(tx, POOL, "b"))
    await book.look("x", "c", "taker")
    facts = Facts("x", "store", "ref", None, SIZE, None, 1, 1)
    for _ in range(2):
        await book.do(lambda tx: ledger.publish(tx, "r-x", facts, owner="c", pin="p", reason="r"))
    await book.do(lambda tx: ledger.reap(tx, POOL, owner="c", grace_s=1.0))
    await book.do(lambda tx: ledger.renew(tx, POOL, "c", 9.0))
    await book.do(lambda tx: ledger.list_entries(tx, POOL))
    await book.do(lambda tx: ledger.show_entry(tx, POOL, "x"))
    await book.do(lambda tx: ledger.statistics(tx, POOL))
    await everything_about_uploads(book)


async def everything_about_uploads(book: Book) -> None:
    """The same for uploads: one is stored, one fails and is cancelled, one is given up."""

    async def do(work: Callable[..., object], **values: object) -> None:
        await book.do(lambda tx: work(tx, POOL, **values))

    for name in ("u1", "u2", "u3"):
        wanted = uploads.Wanted(
            id=name, key=name, store="s", target="{}", ref=name, token="t", replaces=False, announce=True, size=SIZE
        )
        await do(uploads.admit, wanted=wanted, owner="c", limit=10 * SIZE)
    await do(uploads.enlarge, upload="u1", size=SIZE, limit=10 * SIZE)
    for name in ("u1", "u2"):
        while not isinstance((answer := await book.request(name, "c")).decision, Grant):
            await book.finish(answer.evict, "c")
        facts = Facts(name, "s", name, None, SIZE, None, 1, 1)
        await book.do(
            lambda tx, name=name, facts=facts: uploads.stage(  # type: ignore[misc]
                tx, f"r-{name}", facts, pool=POOL, upload=name, owner="c"
            )
        )
    await do(uploads.reclaim, owner="c", at_work={"u1"})
    await do(uploads.stores_waiting)
    await do(uploads.due, store="s", horizon_s=9.0, large=SIZE, some=3, without={"u9"})
    await do(uploads.next_due_s)
    for name in ("u1", "u2"):
        await do(uploads.claim, upload=name, owner="c")
        await do(uploads.note, upload=name, owner="c", sent=1, resumed=0)
    await do(uploads.finish, upload="u1", owner="c", key="k1", version="v")
    await do(uploads.put_back, upload="u2", owner="c", state=UploadState.REFUSED, after_s=1.0, error={})
    await do(uploads.retry, refused_by="s")
    await do(uploads.retry)
    await do(uploads.begin_cancel, upload="u2")
    await book.finish(await book.do(lambda tx: uploads.drop_copies(tx, POOL, owner="c")), "c")
    await do(uploads.claim, upload="u2", owner="c")
    await do(uploads.cancelled, upload="u2", owner="c")
    await do(uploads.ended, limit=9)
    await do(uploads.acknowledge, upload="u1")
    await do(uploads.forget_ended, age_s=1.0)
    await do(uploads.find_by_key, key="u2")
    await do(uploads.unstored_bytes)
    await do(uploads.totals)
