"""The ledger's promises, one by one, on both databases."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import update

from stores.cache import ledger
from stores.cache.database import Transaction
from stores.cache.errors import LeaseLost
from stores.cache.ledger import Abandoned, Follow, Hit, Leaving, Miss, TakeOver, WrongState
from stores.cache.policy import Evict, Grant, Hold, Limits, Queue, Refuse, Wait
from stores.cache.schema import EntryState, pools
from stores.errors import AlreadyExists, NotFound
from tests.ledgers import LEASE_S, POOL, SIZE, UNIT, Book

# ---------------------------------------------------------------------------------------------------------- room


async def test_a_granted_request_is_a_reservation(book: Book) -> None:
    assert (await book.request("x", "a", units=3)).decision == Grant()
    assert (await book.sums()).reserved == 3 * UNIT


async def test_the_same_request_again_takes_no_more_room(book: Book) -> None:
    await book.request("x", "a", units=6)
    assert (await book.request("x", "a", units=6)).decision == Grant()
    assert (await book.sums()).reserved == 6 * UNIT


async def test_more_than_the_pool_is_refused_at_once(book: Book) -> None:
    await book.have("old", "a")
    answer = await book.request("x", "a", units=11)
    assert isinstance(answer.decision, Refuse)
    assert answer.evict == ()
    assert (await book.sums()).reserved == 0


async def test_what_is_reserved_is_nobody_elses(book: Book) -> None:
    await book.request("x", "a", units=8)
    assert isinstance((await book.request("y", "a", units=3)).decision, Wait)
    assert (await book.request("z", "a", units=2)).decision == Grant()


async def test_the_free_space_to_leave_is_a_limit_too(book: Book) -> None:
    answer = await book.do(
        lambda tx: ledger.request(
            tx, POOL, 3 * UNIT, reservation="r", owner="a", key=None, waiter="w", wait_s=1, free_limit=2 * UNIT
        )
    )
    assert isinstance(answer.decision, Refuse)


async def test_room_is_made_by_evicting_and_kept_for_who_made_it(book: Book) -> None:
    for name in "0123456789":
        await book.have(name, "a")
    await book.register("b")
    first = await book.request("x", "a", units=2)
    assert isinstance(first.decision, Evict)
    assert [entry.key for entry in first.evict] == ["0", "1"]
    assert all(entry.state is EntryState.EVICTING and entry.evictor == "a" for entry in first.evict)
    assert await book.finish(first.evict, "a") == 2 * UNIT
    assert isinstance((await book.request("y", "b")).decision, Wait)  # it would fit, but "x" was first
    assert (await book.request("x", "a", units=2)).decision == Grant()
    assert isinstance((await book.request("y", "b")).decision, Evict)
    await book.sums()


async def test_who_is_refused_does_not_wait(book: Book) -> None:
    await book.request("x", "a", units=5)
    await book.wait("y", "a", units=8)
    assert isinstance((await book.request("y", "a", units=8)).decision, Wait)
    await book.open(7)
    assert isinstance((await book.request("y", "a", units=8)).decision, Refuse)
    assert (await book.request("z", "a", units=2)).decision == Grant()


async def test_those_who_wait_are_served_in_their_order(book: Book) -> None:
    await book.request("all", "a", units=10)
    for name in ("first", "second", "third"):
        assert isinstance((await book.request(name, "a", units=4)).decision, Wait)
        await book.wait(name, "a", units=4)
    await book.do(lambda tx: ledger.release(tx, "r-all", owner="a"))
    assert isinstance((await book.request("third", "a", units=4)).decision, Wait)
    assert isinstance((await book.request("second", "a", units=4)).decision, Wait)
    assert isinstance((await book.request("new", "a", units=1)).decision, Wait)
    assert (await book.request("first", "a", units=4)).decision == Grant()
    assert (await book.request("second", "a", units=4)).decision == Grant()
    assert isinstance((await book.request("third", "a", units=4)).decision, Wait)  # its turn, but no room yet


async def test_a_place_in_line_is_kept(book: Book) -> None:
    for _ in range(2):
        assert await book.wait("one", "a") < await book.wait("two", "a")
    for _ in range(2):
        await book.do(lambda tx: ledger.leave(tx, "w-one"))
    assert await book.wait("two", "a") < await book.wait("one", "a")


@pytest.mark.parametrize("end", ["deadline", "lease", "retired"])
async def test_who_stopped_waiting_blocks_nobody(book: Book, end: str) -> None:
    await book.register("b", lease_s=5 if end == "lease" else LEASE_S)
    await book.do(lambda tx: ledger.wait_in_line(tx, POOL, UNIT, waiter="w", owner="b", wait_s=7))
    assert isinstance((await book.request("x", "a")).decision, Wait)
    if end == "retired":
        await book.do(lambda tx: ledger.retire(tx, POOL, "b"))
    else:
        book.now += 8
    assert (await book.request("x", "a")).decision == Grant()


async def test_a_fill_grows_past_those_who_wait(book: Book) -> None:
    await book.request("x", "a", units=4)
    await book.do(lambda tx: ledger.wait_in_line(tx, POOL, 9 * UNIT, waiter="w", owner="a", wait_s=9))
    grown = await book.do(lambda tx: ledger.grow(tx, "r-x", 6 * UNIT, owner="a"))
    assert grown.decision == Grant()
    assert (await book.sums()).reserved == 10 * UNIT
    assert isinstance((await book.do(lambda tx: ledger.grow(tx, "r-x", 1, owner="a"))).decision, Wait)


async def test_a_fill_grows_by_evicting(book: Book) -> None:
    for name in "012345678":
        await book.have(name, "a")
    await book.request("x", "a")
    answer = await book.do(lambda tx: ledger.grow(tx, "r-x", 2 * UNIT, owner="a"))
    assert [entry.key for entry in answer.evict] == ["0", "1"]
    await book.finish(answer.evict, "a")
    assert (await book.do(lambda tx: ledger.grow(tx, "r-x", 2 * UNIT, owner="a"))).decision == Grant()
    assert await book.sums() == ledger.Sums(7 * UNIT, 3 * UNIT, 0, 7 * UNIT, 7, 2 * UNIT, 9 * UNIT)


async def test_a_smaller_limit_keeps_new_bytes_out_until_enough_went(book: Book) -> None:
    for name in "01234567":
        await book.have(name, "a")
    await book.open(5)
    relief = await book.do(lambda tx: ledger.relieve(tx, POOL, Limits(5 * UNIT, high=1.0, low=1.0), owner="a"))
    assert len(relief.pressed) == 3
    answer = await book.request("x", "a")
    assert isinstance(answer.decision, Evict)  # one more than those that leave already
    await book.finish(relief.entries, "a")
    await book.finish(answer.evict, "a")
    assert (await book.request("x", "a")).decision == Grant()
    sums = await book.sums()
    assert sums.used + sums.reserved <= 5 * UNIT


async def test_a_reservation_is_given_back_once(book: Book) -> None:
    await book.request("x", "a")
    assert await book.do(lambda tx: ledger.release(tx, "r-x", owner="a"))
    assert not await book.do(lambda tx: ledger.release(tx, "r-x", owner="a"))
    assert (await book.sums()).reserved == 0


@pytest.mark.parametrize("published", [False, True])
async def test_two_do_not_fill_one_key(book: Book, published: bool) -> None:
    await book.request("x", "a")
    if published:
        await book.publish("x", "a")
    with pytest.raises(AlreadyExists):
        await book.do(
            lambda tx: ledger.request(tx, POOL, UNIT, reservation="r2", owner="a", key="x", waiter="w2", wait_s=1)
        )
    sums = await book.sums()
    assert sums.used + sums.reserved == UNIT


# ------------------------------------------------------------------------------------------------- who has what


async def test_look_tells_what_there_is(book: Book) -> None:
    await book.register("b")
    assert await book.look("x", "a", "1") == Miss()
    await book.request("x", "a", units=2)
    followed = await book.look("x", "b", "2")
    assert isinstance(followed, Follow)
    assert followed.filling.owner == "a"
    await book.publish("x", "a")
    found = await book.look("x", "b", "3")
    assert isinstance(found, Hit)
    assert (found.entry.pins, found.entry.hits, found.entry.queue) == (2, 1, Queue.MAIN)
    sums = await book.sums()
    assert (sums.used, sums.reserved, sums.held, sums.small) == (UNIT, 0, UNIT, 0)


async def test_whoever_looks_first_takes_over_from_the_dead(book: Book) -> None:
    await book.request("x", "a")
    await book.do(lambda tx: ledger.note_progress(tx, "r-x", owner="a", arrived=4, parts="0-1"))
    book.now += LEASE_S
    for owner in "bc":
        await book.register(owner)
    taken = await book.look("x", "b", "1")
    assert isinstance(taken, TakeOver)
    assert (taken.filling.owner, taken.filling.arrived, taken.filling.parts) == ("b", 4, "0-1")
    assert isinstance(await book.look("x", "c", "2"), Follow)
    with pytest.raises(LeaseLost):
        await book.publish("x", "a")
    assert not await book.do(lambda tx: ledger.release(tx, "r-x", owner="a"))
    await book.publish("x", "b")
    await book.sums()


async def test_an_eviction_belongs_to_one_until_they_die(book: Book) -> None:
    entry = await book.have("x", "a")
    await book.register("b", lease_s=2 * LEASE_S)
    await book.do(lambda tx: ledger.evict(tx, POOL, entry.id, owner="a"))
    left = await book.look("x", "b", "1")
    assert isinstance(left, Leaving)
    assert not left.mine
    assert await book.finish((entry,), "b") == 0
    book.now += LEASE_S
    left = await book.look("x", "b", "2")
    assert isinstance(left, Leaving)
    assert left.mine
    assert await book.finish((entry,), "a") == 0
    assert await book.finish((entry,), "b") == UNIT
    assert await book.look("x", "b", "3") == Miss()
    await book.sums()


async def test_what_was_not_removed_can_be_used_again(book: Book) -> None:
    entry = await book.have("x", "a")
    await book.do(lambda tx: ledger.evict(tx, POOL, entry.id, owner="a"))
    for _ in range(2):
        await book.do(lambda tx: ledger.spare(tx, POOL, [entry.id], owner="a"))
    assert (await book.sums()).held == 0
    assert isinstance(await book.look("x", "a", "1"), Hit)


async def test_only_the_evictor_spares(book: Book) -> None:
    entry = await book.have("x", "a")
    await book.register("b")
    await book.do(lambda tx: ledger.evict(tx, POOL, entry.id, owner="a"))
    await book.do(lambda tx: ledger.spare(tx, POOL, [entry.id], owner="b"))
    assert isinstance(await book.look("x", "b", "1"), Leaving)
    assert (await book.sums()).held == UNIT


async def test_publishing_again_is_publishing_once(book: Book) -> None:
    await book.request("x", "a")
    first = await book.publish("x", "a")
    assert (await book.publish("x", "a")).id == first.id
    again = await book.entry("x")
    assert again is not None
    assert again.pins == 1
    assert await book.sums() == ledger.Sums(UNIT, 0, UNIT, UNIT, 1, 0, UNIT)


async def test_what_is_left_of_a_reservation_comes_back(book: Book) -> None:
    await book.request("x", "a", units=7)
    await book.publish("x", "a")
    sums = await book.sums()
    assert (sums.used, sums.reserved) == (UNIT, 0)


async def test_more_than_was_reserved_is_not_published(book: Book) -> None:
    await book.request("x", "a")
    with pytest.raises(WrongState):
        await book.publish("x", "a", size=SIZE + 1)
    assert (await book.sums()).reserved == UNIT


async def test_publishing_what_was_given_back_is_refused(book: Book) -> None:
    await book.request("x", "a")
    await book.do(lambda tx: ledger.release(tx, "r-x", owner="a"))
    with pytest.raises(LeaseLost):
        await book.publish("x", "a")
    assert (await book.sums()).used == 0


async def test_a_pin_is_one_however_often_it_is_made(book: Book) -> None:
    entry = await book.have("x", "a")
    for _ in range(2):
        await book.do(lambda tx: ledger.pin(tx, POOL, entry.id, pin="vm 7", owner=None, reason="attached"))
    assert (await book.sums()).held == UNIT
    assert await book.unpin("vm 7")
    assert not await book.unpin("vm 7")
    assert (await book.sums()).held == 0


async def test_what_goes_cannot_be_pinned(book: Book) -> None:
    entry = await book.have("x", "a")
    await book.do(lambda tx: ledger.evict(tx, POOL, entry.id, owner="a"))
    with pytest.raises(NotFound):
        await book.do(lambda tx: ledger.pin(tx, POOL, entry.id, pin="1", owner="a", reason="r"))
    await book.finish((entry,), "a")
    with pytest.raises(NotFound):
        await book.do(lambda tx: ledger.pin(tx, POOL, entry.id, pin="1", owner="a", reason="r"))


async def test_pinned_and_dirty_entries_stay(book: Book) -> None:
    pinned, dirty, uploading, free = [await book.have(name, "a") for name in ("pinned", "dirty", "up", "free")]
    await book.do(lambda tx: ledger.pin(tx, POOL, pinned.id, pin="1", owner="a", reason="r"))
    await book.do(lambda tx: ledger.set_state(tx, POOL, dirty.id, EntryState.DIRTY))
    await book.do(lambda tx: ledger.set_state(tx, POOL, uploading.id, EntryState.UPLOADING))
    assert await book.do(lambda tx: ledger.evict(tx, POOL, pinned.id, owner="a")) is Hold.PINNED
    assert await book.do(lambda tx: ledger.evict(tx, POOL, dirty.id, owner="a")) is Hold.DIRTY
    assert await book.do(lambda tx: ledger.evict(tx, POOL, uploading.id, owner="a")) is Hold.DIRTY
    answer = await book.request("x", "a", units=7)
    assert [entry.key for entry in answer.evict] == ["free"]
    assert await book.do(lambda tx: ledger.evict(tx, POOL, free.id, owner="a")) is Hold.EVICTING
    waiting = await book.request("y", "a", units=9)
    assert isinstance(waiting.decision, Wait)
    book.wall += 1e9
    limits = Limits(10 * UNIT, high=0.0, low=0.0, max_idle_s=1, max_age_s=1)
    assert (await book.do(lambda tx: ledger.relieve(tx, POOL, limits, owner="a"))).entries == ()
    await book.do(lambda tx: ledger.set_state(tx, POOL, dirty.id, EntryState.READY))
    assert [entry.key for entry in (await book.do(lambda tx: ledger.relieve(tx, POOL, limits, owner="a"))).overdue] == [
        "dirty"
    ]
    await book.sums()


async def test_what_leaves_cannot_become_dirty(book: Book) -> None:
    entry = await book.have("x", "a")
    await book.do(lambda tx: ledger.evict(tx, POOL, entry.id, owner="a"))
    with pytest.raises(WrongState):
        await book.do(lambda tx: ledger.set_state(tx, POOL, entry.id, EntryState.DIRTY))
    with pytest.raises(WrongState):
        await book.do(lambda tx: ledger.set_state(tx, POOL, entry.id, EntryState.READY))
    with pytest.raises(WrongState):
        await book.do(lambda tx: ledger.quarantine(tx, POOL, entry.id))


async def test_what_is_quarantined_is_out_of_the_way(book: Book) -> None:
    bad = await book.have("x", "a")
    await book.look("x", "a", "reader")
    for _ in range(2):
        quarantined = await book.do(lambda tx: ledger.quarantine(tx, POOL, bad.id))
    assert quarantined.file == bad.file
    assert await book.look("x", "a", "1") == Miss()
    await book.do(
        lambda tx: ledger.request(tx, POOL, UNIT, reservation="r2", owner="a", key="x", waiter="w2", wait_s=1)
    )
    facts = ledger.Facts("x", "store", "ref", None, SIZE, None, 1, 1)
    better = await book.do(lambda tx: ledger.publish(tx, "r2", facts, owner="a", pin="2", reason="fill"))
    assert better.file != bad.file
    sums = await book.sums()
    assert (sums.used, sums.held, sums.entries) == (2 * UNIT, 2 * UNIT, 2)  # both are pinned
    await book.unpin("reader")
    await book.unpin("2")
    answer = await book.request("y", "a", units=9)
    assert [entry.id for entry in answer.evict] == [bad.id]
    await book.do(lambda tx: ledger.spare(tx, POOL, [bad.id], owner="a"))
    shown = await book.do(lambda tx: ledger.list_entries(tx, POOL, state=EntryState.QUARANTINED))
    assert [each.entry.id for each in shown] == [bad.id]
    gone = await book.do(lambda tx: ledger.evict(tx, POOL, bad.id, owner="a"))
    assert isinstance(gone, ledger.Entry)
    assert await book.finish((gone,), "a") == UNIT
    assert (await book.sums()).ghosts == 0


# --------------------------------------------------------------------------------------------- ages and pressure


async def test_old_and_idle_entries_go(book: Book) -> None:
    for name in ("old", "used", "new"):
        await book.have(name, "a")
        book.wall += 50
    await book.look("used", "a", "1")
    await book.unpin("1")
    limits = Limits(10 * UNIT, max_idle_s=75, max_age_s=None)
    relief = await book.do(lambda tx: ledger.relieve(tx, POOL, limits, owner="a"))
    assert [entry.key for entry in relief.overdue] == ["old"]
    limits = Limits(10 * UNIT, max_idle_s=None, max_age_s=75)
    relief = await book.do(lambda tx: ledger.relieve(tx, POOL, limits, owner="a"))
    assert [entry.key for entry in relief.overdue] == ["used"]


async def test_a_clock_set_back_evicts_nothing_and_holds_nothing(book: Book) -> None:
    for name in "0123456789":
        await book.have(name, "a")
    book.wall -= 1e8
    limits = Limits(10 * UNIT, high=1.0, low=0.5, max_idle_s=10, max_age_s=10)
    assert (await book.do(lambda tx: ledger.relieve(tx, POOL, limits, owner="a"))).entries == ()
    assert isinstance((await book.request("x", "a", min_age_s=60)).decision, Evict)


async def test_the_young_stay_and_nothing_else_goes_in_vain(book: Book) -> None:
    for name in "01234":
        await book.have(name, "a")
    book.wall += 100
    for name in "56789":
        await book.have(name, "a")
    assert isinstance((await book.request("x", "a", units=6, min_age_s=60)).decision, Wait)
    assert (await book.sums()).held == 0
    answer = await book.request("y", "a", units=5, min_age_s=60)
    assert [entry.key for entry in answer.evict] == list("01234")


async def test_pressure_is_relieved_down_to_the_low_mark(book: Book) -> None:
    for name in "012345678":
        await book.have(name, "a")
    limits = Limits(10 * UNIT, high=0.95, low=0.5)
    assert (await book.do(lambda tx: ledger.relieve(tx, POOL, limits, owner="a"))).entries == ()
    await book.have("9", "a")
    relief = await book.do(lambda tx: ledger.relieve(tx, POOL, limits, owner="a"))
    assert [entry.key for entry in relief.pressed] == list("01234")


async def test_objects_used_again_outlive_a_scan_once_that_was_learned(book: Book) -> None:
    await book.do(lambda tx: tx.connection.execute(update(pools).values(bias=10.0)))
    await book.have("daily", "a")
    await book.look("daily", "a", "1")
    await book.unpin("1")
    for turn in range(50):
        await book.have(f"scan {turn}", "a")
    assert await book.entry("daily") is not None
    await book.sums()


async def test_a_key_that_comes_back_soon_was_missed(book: Book) -> None:
    for name in "0123456789x":
        await book.have(name, "a")
    assert await book.entry("0") is None
    again = await book.have("0", "a")
    assert again.queue is Queue.MAIN
    await book.sums()


# --------------------------------------------------------------------------------------------------------- leases


async def test_a_lease_that_ran_out_claims_nothing(book: Book) -> None:
    entry = await book.have("x", "a")
    await book.request("y", "a")
    book.now += LEASE_S
    limits = Limits(UNIT)
    for attempt in (
        lambda: book.request("z", "a"),
        lambda: book.look("x", "a", "1"),
        lambda: book.publish("y", "a"),
        lambda: book.do(lambda tx: ledger.pin(tx, POOL, entry.id, pin="1", owner="a", reason="r")),
        lambda: book.do(lambda tx: ledger.grow(tx, "r-y", 1, owner="a")),
        lambda: book.do(lambda tx: ledger.wait_in_line(tx, POOL, 1, waiter="w", owner="a", wait_s=1)),
        lambda: book.do(lambda tx: ledger.renew(tx, POOL, "a", LEASE_S)),
        lambda: book.do(lambda tx: ledger.relieve(tx, POOL, limits, owner="a")),
        lambda: book.do(lambda tx: ledger.evict(tx, POOL, entry.id, owner="a")),
        lambda: book.do(lambda tx: ledger.reap(tx, POOL, owner="a")),
    ):
        with pytest.raises(LeaseLost):
            await attempt()
    assert await book.sums() == ledger.Sums(UNIT, UNIT, 0, UNIT, 1, 0, UNIT)


async def test_a_renewed_lease_runs_on(book: Book) -> None:
    for _ in range(3):
        book.now += LEASE_S - 1
        await book.do(lambda tx: ledger.renew(tx, POOL, "a", LEASE_S))
    assert (await book.request("x", "a")).decision == Grant()


async def test_a_reboot_ends_leases_of_that_host(book: Book) -> None:
    await book.request("x", "a")
    book.now = 3.0  # the clock of a new boot
    await book.register("b", boot="boot 2")
    with pytest.raises(LeaseLost):
        await book.do(lambda tx: ledger.renew(tx, POOL, "a", LEASE_S))
    assert isinstance(await book.look("x", "b", "1"), TakeOver)


async def test_what_the_dead_held_is_let_go_of_once(book: Book) -> None:
    pinned, leaving = await book.have("pinned", "a"), await book.have("leaving", "a")
    kept = await book.have("kept", "a")
    await book.do(lambda tx: ledger.pin(tx, POOL, pinned.id, pin="1", owner="a", reason="r"))
    await book.do(lambda tx: ledger.pin(tx, POOL, kept.id, pin="2", owner=None, reason="attached"))
    await book.do(lambda tx: ledger.evict(tx, POOL, leaving.id, owner="a"))
    await book.request("x", "a")
    await book.do(lambda tx: ledger.wait_in_line(tx, POOL, UNIT, waiter="w", owner="a", wait_s=999))
    await book.register("b", lease_s=2 * LEASE_S)
    assert await book.do(lambda tx: ledger.reap(tx, POOL, owner="b")) == Abandoned((), ())
    book.now += LEASE_S
    await book.register("c")
    found = await book.do(lambda tx: ledger.reap(tx, POOL, owner="b"))
    assert [(each.key, each.owner) for each in found.fillings] == [("x", "b")]
    assert [(each.key, each.evictor) for each in found.leaving] == [("leaving", "b")]
    assert await book.do(lambda tx: ledger.reap(tx, POOL, owner="c")) == Abandoned((), ())
    assert await book.do(lambda tx: ledger.release(tx, "r-x", owner="b"))
    assert await book.finish(found.leaving, "b") == UNIT
    assert await book.sums() == ledger.Sums(2 * UNIT, 0, UNIT, 2 * UNIT, 2, UNIT, 3 * UNIT)
    assert (await book.do(lambda tx: ledger.statistics(tx, POOL))).waiting == 0


async def test_fills_of_the_dead_are_left_for_a_while_to_who_wants_them(book: Book) -> None:
    await book.request("x", "a")
    await book.do(
        lambda tx: ledger.request(tx, POOL, UNIT, reservation="r2", owner="a", key=None, waiter="w2", wait_s=1)
    )
    book.now += LEASE_S
    await book.register("b", lease_s=3 * LEASE_S)
    first = await book.do(lambda tx: ledger.reap(tx, POOL, owner="b", grace_s=10))
    assert [each.id for each in first.fillings] == ["r2"]
    book.now += 10
    second = await book.do(lambda tx: ledger.reap(tx, POOL, owner="b", grace_s=10))
    assert [each.id for each in second.fillings] == ["r-x"]


# -------------------------------------------------------------------------------------------------------- reports


async def test_entries_are_listed_by_pages_with_what_holds_them(book: Book) -> None:
    for name in "012":
        await book.have(name, "a")
    await book.request("3", "a")
    await book.publish("3", "a")
    first = await book.do(lambda tx: ledger.list_entries(tx, POOL, limit=3))
    rest = await book.do(lambda tx: ledger.list_entries(tx, POOL, limit=3, after=first[-1].entry.key))
    assert [(each.entry.key, each.hold) for each in first + rest] == [
        ("0", None),
        ("1", None),
        ("2", None),
        ("3", Hold.PINNED),
    ]
    young = await book.do(lambda tx: ledger.list_entries(tx, POOL, limit=1, min_age_s=60))
    assert young[0].hold is Hold.TOO_YOUNG
    shown = await book.do(lambda tx: ledger.show_entry(tx, POOL, "3"))
    assert shown is not None
    assert [(each.id, each.owner, each.reason, each.since) for each in shown.pins] == [("p-3", "a", "fill", book.wall)]
    assert await book.do(lambda tx: ledger.show_entry(tx, POOL, "4")) is None


async def test_statistics_name_the_oldest_holders(book: Book) -> None:
    entry = await book.have("attached", "a")
    await book.do(lambda tx: ledger.pin(tx, POOL, entry.id, pin="vm", owner=None, reason="attached to 7"))
    book.wall += 1
    await book.request("filling", "a", units=2)
    dirty = await book.have("dirty", "a")
    await book.do(lambda tx: ledger.set_state(tx, POOL, dirty.id, EntryState.DIRTY))
    bad = await book.have("bad", "a")
    await book.do(lambda tx: ledger.quarantine(tx, POOL, bad.id))
    await book.do(lambda tx: ledger.wait_in_line(tx, POOL, UNIT, waiter="w", owner="a", wait_s=9))
    found = await book.do(lambda tx: ledger.statistics(tx, POOL))
    assert (found.limit, found.used, found.reserved, found.held) == (10 * UNIT, 3 * UNIT, 2 * UNIT, 2 * UNIT)
    assert (found.pinned, found.dirty, found.quarantined, found.used_once) == (UNIT, UNIT, UNIT, 3 * UNIT)
    assert (found.entries, found.fills, found.waiting) == (3, 1, 1)
    assert [(each.by, each.what, each.owner, each.host, each.pid, each.since) for each in found.oldest] == [
        (ledger.Holding.PIN, "attached", None, None, None, book.wall - 1),
        (ledger.Holding.FILL, "filling", "a", "host", 1, book.wall),
    ]


async def test_scrubbing_begins_with_what_was_proved_the_longest_ago(book: Book) -> None:
    entries = []
    for name in "012":
        entries.append(await book.have(name, "a"))
        book.wall += 10
    await book.do(lambda tx: ledger.proved(tx, POOL, entries[0].id, "sha256:abc"))
    found = await book.do(lambda tx: ledger.unproved(tx, POOL, before=book.wall - 5, limit=5))
    assert [each.key for each in found] == ["1", "2"]
    first = await book.entry("0")
    assert first is not None
    assert (first.digest, first.proved_at) == ("sha256:abc", book.wall)


async def test_wrong_sums_are_found_and_corrected(book: Book) -> None:
    await book.have("x", "a")
    assert not await book.do(lambda tx: ledger.correct_sums(tx, POOL))
    await book.do(lambda tx: tx.connection.execute(update(pools).values(used=7, held=9, recent=1)))
    assert await book.do(lambda tx: ledger.correct_sums(tx, POOL))
    await book.sums()


async def test_a_pool_that_nobody_opened(book: Book) -> None:
    with pytest.raises(NotFound):
        await book.do(lambda tx: ledger.statistics(tx, "another"))


# ------------------------------------------------------------------------------------------------------- at once


async def test_many_at_once_never_get_more_than_there_is(book: Book) -> None:
    answers = await asyncio.gather(*(book.request(f"x{number}", "a") for number in range(40)))
    assert sum(answer.decision == Grant() for answer in answers) == 10
    assert (await book.sums()).reserved == 10 * UNIT


async def test_many_at_once_share_one_fill(book: Book) -> None:
    async def look_or_fill(number: int) -> str:
        def work(tx: Transaction) -> str:
            found = ledger.look(tx, POOL, "x", owner="a", pin=f"{number}", reason="r")
            if found == Miss():
                ledger.request(
                    tx, POOL, UNIT, reservation=f"r{number}", owner="a", key="x", waiter=f"{number}", wait_s=1
                )
            return type(found).__name__

        return await book.do(work)

    found = await asyncio.gather(*map(look_or_fill, range(30)))
    assert sorted(found) == ["Follow"] * 29 + ["Miss"]
