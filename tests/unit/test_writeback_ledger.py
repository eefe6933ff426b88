"""Uploads in the ledger: the promises of each transaction, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
from sqlalchemy import text

from stores.cache import ledger
from stores.cache.database import Transaction
from stores.cache.errors import LeaseLost
from stores.cache.ledger import Entry, Facts, Leaving, uploads
from stores.cache.ledger.uploads import Admission, Upload, Wanted
from stores.cache.policy import Hold, Limits
from stores.cache.schema import MIGRATIONS, EntryState, UploadState, migrate
from tests.ledgers import POOL, SIZE, Book

T = TypeVar("T")
LIMIT = 4 * SIZE
ERROR = {"kind": "Unavailable", "message": "down", "details": {}}


def wanted(name: str, size: int = SIZE, store: str = "store") -> Wanted:
    return Wanted(
        id=f"u-{name}",
        key=ledger.staged_key(store, name, "token"),
        store=store,
        target="{}",
        ref=name,
        token="token",
        replaces=False,
        announce=True,
        size=size,
    )


class Desk:
    """Uploads of the pool `POOL`."""

    def __init__(self, book: Book) -> None:
        self.book = book

    async def do(self, work: Callable[[Transaction], T]) -> T:
        return await self.book.do(work)

    async def admit(self, name: str, owner: str = "a", size: int = SIZE, store: str = "store") -> Admission:
        return await self.do(lambda tx: uploads.admit(tx, POOL, wanted(name, size, store), owner=owner, limit=LIMIT))

    async def stage(self, name: str, owner: str = "a", size: int = SIZE, store: str = "store") -> Upload:
        assert (await self.admit(name, owner, size, store)).admitted
        await self.publish(name, owner, size, store)
        return await self.get(name)

    async def publish(self, name: str, owner: str = "a", size: int = SIZE, store: str = "store") -> Entry:
        key = wanted(name, size, store).key
        await self.book.do(
            lambda tx: ledger.request(
                tx, POOL, ledger.charge_of(size), reservation=f"r-{name}", owner=owner, key=key, waiter="w", wait_s=1
            )
        )
        return await self.record(name, owner, size, store)

    async def record(self, name: str, owner: str = "a", size: int = SIZE, store: str = "store") -> Entry:
        facts = Facts(wanted(name, size, store).key, store, name, None, size, None, 11, 12)
        return await self.do(
            lambda tx: uploads.stage(tx, f"r-{name}", facts, pool=POOL, upload=f"u-{name}", owner=owner)
        )

    async def get(self, name: str) -> Upload:
        return await self.do(lambda tx: uploads.get(tx, POOL, f"u-{name}"))

    async def entry(self, name: str) -> Entry:
        found = (await self.get(name)).entry
        assert found is not None
        entry = await self.do(lambda tx: ledger.entry_by_id(tx, POOL, found))
        assert entry is not None
        return entry

    async def due(self, store: str = "store", horizon_s: float = 300.0) -> list[str]:
        found = await self.do(lambda tx: uploads.due(tx, POOL, store, horizon_s=horizon_s, large=2 * SIZE, some=2))
        return [upload.ref for upload in found]

    async def claim(self, name: str, owner: str = "a") -> Upload | None:
        return await self.do(lambda tx: uploads.claim(tx, POOL, f"u-{name}", owner=owner))

    async def put_back(
        self, name: str, owner: str = "a", state: UploadState = UploadState.WAITING, after_s: float = 0
    ) -> None:
        await self.do(
            lambda tx: uploads.put_back(tx, POOL, f"u-{name}", owner=owner, state=state, after_s=after_s, error=ERROR)
        )

    async def finish(self, name: str, owner: str = "a", key: str | None = "key") -> uploads.Finished:
        return await self.do(lambda tx: uploads.finish(tx, POOL, f"u-{name}", owner=owner, key=key, version="v1"))

    async def reclaim(self, owner: str = "a", at_work: tuple[str, ...] = ()) -> None:
        await self.do(lambda tx: uploads.reclaim(tx, POOL, owner=owner, at_work=at_work))

    async def unstored(self) -> int:
        return await self.do(lambda tx: uploads.unstored_bytes(tx, POOL))


@pytest.fixture
def desk(book: Book) -> Desk:
    return Desk(book)


# ---------------------------------------------------------------------------------------------------------- staging


async def test_staging_is_admitted_up_to_the_limit_first_come_first_served(desk: Desk) -> None:
    assert await desk.admit("a", size=3 * SIZE) == Admission(True, 3 * SIZE)
    assert not (await desk.admit("b", size=2 * SIZE)).admitted
    assert not (await desk.admit("c")).admitted, "it would fit, but another came first"
    assert (await desk.admit("a", size=3 * SIZE)).admitted, "asking again changes nothing"
    assert await desk.unstored() == 3 * SIZE
    await desk.do(lambda tx: uploads.withdraw(tx, POOL, "u-a"))
    assert not (await desk.admit("c")).admitted
    assert (await desk.admit("b", size=2 * SIZE)).admitted
    assert (await desk.admit("c")).admitted


async def test_the_dead_do_not_stand_in_line(desk: Desk) -> None:
    await desk.book.register("b", lease_s=1)
    await desk.admit("a", size=3 * SIZE)
    assert not (await desk.admit("b", "b", size=2 * SIZE)).admitted
    desk.book.now += 2
    assert (await desk.admit("c")).admitted
    with pytest.raises(LeaseLost):
        await desk.admit("d", "b")


async def test_what_is_staged_is_dirty_and_waits(desk: Desk) -> None:
    upload = await desk.stage("a")
    assert (upload.state, upload.size, upload.owner) == (UploadState.WAITING, SIZE, None)
    entry = await desk.entry("a")
    assert (entry.state, entry.pins) == (EntryState.DIRTY, 0)
    assert await desk.do(lambda tx: ledger.evict(tx, POOL, entry.id, owner="a")) is Hold.DIRTY
    assert await desk.record("a") == entry, "the same again is the same"
    await desk.book.sums()


async def test_the_same_write_finds_its_twin(desk: Desk) -> None:
    staged = await desk.stage("a")
    other = Wanted(**{**{name: getattr(staged, name) for name in Wanted.__dataclass_fields__}, "id": "u-other"})
    answer = await desk.do(lambda tx: uploads.admit(tx, POOL, other, owner="a", limit=LIMIT))
    assert answer.twin == staged
    assert await desk.do(lambda tx: uploads.find(tx, POOL, "u-other")) is None


async def test_staging_that_was_given_up_for_dead_cannot_be_finished(desk: Desk) -> None:
    await desk.admit("a")
    await desk.reclaim(at_work=("u-a",))
    assert (await desk.get("a")).state is UploadState.STAGING
    await desk.reclaim()
    with pytest.raises(LeaseLost):
        await desk.publish("a")
    assert await desk.unstored() == 0
    assert (await desk.book.sums()).used == 0


async def test_growing_is_bounded_too(desk: Desk) -> None:
    await desk.admit("a")

    async def enlarge(size: int) -> bool:
        answer = await desk.do(lambda tx: uploads.enlarge(tx, POOL, "u-a", size, limit=LIMIT))
        return answer.admitted

    assert [await enlarge(4 * SIZE), await enlarge(4 * SIZE + 1)] == [True, False]
    assert await desk.unstored() == 4 * SIZE
    await desk.do(lambda tx: uploads.withdraw(tx, POOL, "u-a"))
    with pytest.raises(LeaseLost):
        await enlarge(1)


# --------------------------------------------------------------------------------------------------------- uploading


async def test_an_upload_belongs_to_one_owner(desk: Desk) -> None:
    await desk.book.register("b")
    await desk.stage("a")
    claimed = await desk.claim("a")
    assert claimed is not None
    assert (claimed.state, claimed.attempts, claimed.owner) == (UploadState.SENDING, 1, "a")
    assert (await desk.entry("a")).state is EntryState.UPLOADING
    assert await desk.claim("a", "b") is None
    assert await desk.due() == []
    await desk.reclaim("b")
    assert (await desk.get("a")).owner == "a"


async def test_a_dead_owners_upload_is_taken_over_within_a_lease(desk: Desk) -> None:
    await desk.book.register("b", lease_s=30)
    await desk.stage("a", "b")
    await desk.claim("a", "b")
    desk.book.now += 29
    await desk.do(lambda tx: ledger.renew(tx, POOL, "a", 30.0))
    await desk.reclaim()
    assert (await desk.get("a")).owner == "b"
    desk.book.now += 2
    await desk.reclaim()
    upload = await desk.get("a")
    assert (upload.state, upload.owner) == (UploadState.WAITING, None)
    assert (await desk.entry("a")).state is EntryState.DIRTY
    assert await desk.claim("a") is not None
    with pytest.raises(LeaseLost):
        await desk.finish("a", "b")
    await desk.put_back("a", "b", UploadState.FAILED)
    assert (await desk.get("a")).state is UploadState.SENDING, "it is not the dead one's any more"


async def test_what_an_owner_has_lost_sight_of_waits_again(desk: Desk) -> None:
    await desk.stage("a")
    await desk.claim("a")
    await desk.reclaim(at_work=("u-a",))
    assert (await desk.get("a")).state is UploadState.SENDING
    await desk.reclaim()
    assert (await desk.get("a")).state is UploadState.WAITING


async def test_the_oldest_are_due_first_in_two_lanes_for_each_store(desk: Desk) -> None:
    for name, size in (("a", 1), ("b", 2 * SIZE), ("c", 2), ("d", 3)):
        await desk.stage(name, size=size)
    await desk.stage("x", size=1, store="other")
    assert await desk.due() == ["a", "b", "c"]
    assert await desk.due("other") == ["x"]
    assert await desk.do(lambda tx: uploads.stores_waiting(tx, POOL)) == {"store", "other"}


async def test_a_failed_attempt_is_due_again_after_its_pause(desk: Desk) -> None:
    await desk.stage("a")
    await desk.claim("a")
    await desk.put_back("a", after_s=60)
    upload = await desk.get("a")
    assert (upload.state, upload.error, upload.next_attempt_s) == (UploadState.WAITING, ERROR, 60)
    assert (await desk.entry("a")).state is EntryState.DIRTY
    assert await desk.due() == []
    assert await desk.do(lambda tx: uploads.next_due_s(tx, POOL)) == 60
    desk.book.now += 60
    assert await desk.due() == ["a"]


@pytest.mark.parametrize("jump", [-1e6, -1000.0])
async def test_a_clock_that_begins_anew_stalls_nothing(desk: Desk, jump: float) -> None:
    """After a boot of the host, say."""
    await desk.stage("a")
    await desk.claim("a")
    await desk.put_back("a", after_s=300)
    desk.book.now += jump
    desk.book.wall += 10 * jump
    assert await desk.due() == ["a"]
    assert (await desk.get("a")).age_s == 0


@pytest.mark.parametrize("state", [UploadState.REFUSED, UploadState.FAILED])
async def test_what_needs_somebody_waits_for_somebody(desk: Desk, state: UploadState) -> None:
    await desk.stage("a")
    await desk.claim("a")
    await desk.put_back("a", state=state)
    desk.book.now += 1e6
    assert await desk.due() == []
    await desk.book.register("z")
    refused = await desk.do(lambda tx: uploads.retry(tx, POOL, refused_by="store"))
    assert refused == (state is UploadState.REFUSED)
    assert await desk.do(lambda tx: uploads.retry(tx, POOL, refused_by="other")) == 0
    assert await desk.do(lambda tx: uploads.retry(tx, POOL, upload="u-a")) == 1
    assert await desk.due() == ["a"]


async def test_stored_is_an_ordinary_entry_and_an_event_at_once(desk: Desk) -> None:
    await desk.stage("a")
    await desk.claim("a")
    finished = await desk.finish("a")
    assert finished.leaving is None
    assert (finished.upload.state, finished.upload.version, finished.upload.entry) == (UploadState.STORED, "v1", None)
    entry = await desk.book.entry("key")
    assert entry is not None
    assert (entry.state, entry.version, entry.pins) == (EntryState.READY, "v1", 0)
    assert await desk.unstored() == 0
    await desk.book.sums()
    for _ in range(2):
        events = await desk.do(lambda tx: uploads.ended(tx, POOL, limit=10))
        assert [event.ref for event in events] == ["a"]
    for _ in range(2):
        await desk.do(lambda tx: uploads.acknowledge(tx, POOL, "u-a"))
    assert await desk.do(lambda tx: uploads.list_uploads(tx, POOL)) == ()
    assert isinstance(await desk.do(lambda tx: ledger.evict(tx, POOL, entry.id, owner="a")), Entry)


async def test_only_what_is_over_is_acknowledged(desk: Desk) -> None:
    await desk.stage("a")
    await desk.do(lambda tx: uploads.acknowledge(tx, POOL, "u-a"))
    assert (await desk.get("a")).state is UploadState.WAITING


@pytest.mark.parametrize("by", ["an entry", "a fill", "no version"])
async def test_a_copy_that_nobody_could_find_goes(desk: Desk, by: str) -> None:
    await desk.stage("a")
    await desk.claim("a")
    if by == "an entry":
        await desk.book.have("key", "a")
    elif by == "a fill":
        await desk.book.request("key", "a")
    finished = await desk.finish("a", key=None if by == "no version" else "key")
    assert finished.leaving is not None
    assert (finished.leaving.state, finished.leaving.evictor) == (EntryState.EVICTING, "a")
    await desk.book.finish((finished.leaving,), "a")
    if by == "a fill":
        await desk.book.publish("key", "a")
    await desk.book.sums()


async def test_what_was_known_of_that_version_before_is_forgotten(desk: Desk) -> None:
    """It was here, and went: the policy remembers it under its key."""
    await desk.book.have("key", "a")
    relief = await desk.do(lambda tx: ledger.relieve(tx, POOL, Limits(1, high=0.0, low=0.0), owner="a"))
    await desk.book.finish(relief.entries, "a")
    assert (await desk.book.sums()).ghosts
    await desk.stage("a")
    await desk.claim("a")
    await desk.finish("a")
    assert not (await desk.book.sums()).ghosts
    entry = await desk.book.entry("key")
    assert entry is not None
    chosen = await desk.do(lambda tx: ledger.evict(tx, POOL, entry.id, owner="a"))
    assert isinstance(chosen, Entry)
    await desk.book.finish((chosen,), "a")
    assert not isinstance(await desk.book.look("key", "a", "p"), Leaving)


# -------------------------------------------------------------------------------------------------------- cancelling


async def test_cancelling_gives_back_the_room_and_ends_when_the_store_has_nothing_left(desk: Desk) -> None:
    await desk.stage("a")
    cancelled = await desk.do(lambda tx: uploads.begin_cancel(tx, POOL, "u-a"))
    assert cancelled is not None
    assert cancelled.state is UploadState.CANCELLING
    assert await desk.unstored() == 0
    leaving = await desk.do(lambda tx: uploads.drop_copies(tx, POOL, owner="a"))
    assert len(leaving) == 1
    await desk.book.finish(leaving, "a")
    assert await desk.due() == ["a"]
    assert (await desk.claim("a")) is not None
    await desk.put_back("a", state=UploadState.FAILED, after_s=5)
    assert (await desk.get("a")).state is UploadState.CANCELLING, "it is tried until it is done"
    desk.book.now += 5
    await desk.claim("a")
    await desk.do(lambda tx: uploads.cancelled(tx, POOL, "u-a", owner="a"))
    assert [event.state for event in await desk.do(lambda tx: uploads.ended(tx, POOL, limit=9))] == ["cancelled"]
    again = Wanted(**{**{n: getattr(wanted("a"), n) for n in Wanted.__dataclass_fields__}, "id": "u-again"})
    assert (await desk.do(lambda tx: uploads.admit(tx, POOL, again, owner="a", limit=LIMIT))).admitted
    await desk.book.sums()


async def test_an_upload_that_is_sent_is_cancelled_by_who_sends_it(desk: Desk) -> None:
    await desk.stage("a")
    await desk.claim("a")
    assert await desk.do(lambda tx: uploads.note(tx, POOL, "u-a", owner="a", sent=5, resumed=2))
    await desk.do(lambda tx: uploads.begin_cancel(tx, POOL, "u-a"))
    assert await desk.do(lambda tx: uploads.drop_copies(tx, POOL, owner="a")) == ()
    assert not await desk.do(lambda tx: uploads.note(tx, POOL, "u-a", owner="a", sent=5, resumed=2))
    await desk.reclaim()
    assert len(await desk.do(lambda tx: uploads.drop_copies(tx, POOL, owner="a"))) == 1


async def test_what_the_store_had_before_it_was_cancelled_is_stored(desk: Desk) -> None:
    await desk.stage("a")
    await desk.claim("a")
    await desk.do(lambda tx: uploads.begin_cancel(tx, POOL, "u-a"))
    assert (await desk.finish("a")).upload.state is UploadState.STORED


async def test_what_was_not_to_be_announced_is_forgotten_after_a_while(desk: Desk) -> None:
    quiet = Wanted(**{**{n: getattr(wanted("a"), n) for n in Wanted.__dataclass_fields__}, "announce": False})
    await desk.do(lambda tx: uploads.admit(tx, POOL, quiet, owner="a", limit=LIMIT))
    await desk.publish("a")
    await desk.claim("a")
    await desk.finish("a")
    assert await desk.do(lambda tx: uploads.ended(tx, POOL, limit=9)) == ()
    await desk.do(lambda tx: uploads.forget_ended(tx, POOL, age_s=10))
    assert (await desk.get("a")).state is UploadState.STORED
    desk.book.wall += 11
    await desk.do(lambda tx: uploads.forget_ended(tx, POOL, age_s=10))
    assert await desk.do(lambda tx: uploads.list_uploads(tx, POOL)) == ()


async def test_totals(desk: Desk) -> None:
    await desk.stage("a")
    desk.book.wall += 60
    await desk.stage("b", size=2 * SIZE)
    await desk.admit("c", size=1)
    found = await desk.do(lambda tx: uploads.totals(tx, POOL))
    assert (found.bytes, found.count, found.oldest_s) == (3 * SIZE + 1, 2, 60)
    assert found.by_state == {UploadState.WAITING: 2, UploadState.STAGING: 1}


# --------------------------------------------------------------------------------------------------------- migration


FIRST = ("DROP TABLE uploads", "DROP INDEX entries_by_file")
SECOND = ("DROP INDEX uploads_by_followed", "ALTER TABLE uploads DROP COLUMN follows")


@pytest.mark.parametrize(("version", "undone"), [(1, FIRST), (2, SECOND)])
async def test_a_ledger_of_an_earlier_version_is_brought_up_to_date(
    desk: Desk, version: int, undone: tuple[str, ...]
) -> None:
    """And keeps what it has."""
    await desk.book.have("old", "a")

    def as_it_was(tx: Transaction) -> None:
        for statement in (*undone, f"UPDATE ledger_version SET version = {version}"):
            tx.connection.execute(text(statement))

    await desk.do(as_it_was)
    await desk.do(lambda tx: migrate(tx.connection))
    found = await desk.do(lambda tx: tx.connection.execute(text("SELECT version FROM ledger_version")).scalar_one())
    assert found == len(MIGRATIONS) == 3
    await desk.stage("a")
    assert await desk.book.entry("old") is not None
    await desk.book.sums()
