"""Several owners of one pool do whatever they like, die, and see clocks jump: after every step the ledger says what a model in
plain Python says, and its bounds hold."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from stores.cache import ledger, policy
from stores.cache.database import Database, Transaction
from stores.cache.errors import LeaseLost
from stores.cache.ledger import Facts, Follow, Hit, Leaving, Miss, TakeOver, WrongState, charge_of
from stores.cache.policy import Evict, Grant, Limits, PoolState, Refuse
from stores.cache.postgres import PostgresDatabase
from stores.cache.schema import EntryState, entries, metadata, pins, reservations, versions, waiters
from stores.cache.sqlite import SqliteDatabase
from stores.errors import AlreadyExists, NotFound, StoreError
from stores.secret import Secret
from tests.ledgers import LEASE_S, POOL, SIZE, UNIT
from tests.postgres import PASSWORD, Postgres

T = TypeVar("T")
KEYS = st.sampled_from("ABCDEF")
OWNERS = st.integers(0, 2)  # which of those who registered last
UNITS = st.integers(1, 4)
STEPS_S = st.sampled_from([1.0, 1.0, 1.0, LEASE_S / 3, LEASE_S])  # most of the time, most are alive


@dataclass
class ModelEntry:
    key: str
    charge: int
    state: EntryState = EntryState.READY
    pins: set[str] = field(default_factory=set)
    evictor: str | None = None

    @property
    def held(self) -> bool:
        return bool(self.pins) or self.state not in (EntryState.READY, EntryState.QUARANTINED)


@dataclass
class ModelFill:
    owner: str
    charge: int
    key: str


class Cache(RuleBasedStateMachine):
    database: Callable[[], Database]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.ledger = type(self).database()
        self.now, self.wall, self.boot, self.number = 1000.0, 1.7e9, 1, 0
        self.limit = 8 * UNIT
        self.over = 0  # bytes above the limit since it was made smaller
        self.owners: dict[str, float] = {}  # when their leases end
        self.entries: dict[int, ModelEntry] = {}
        self.fills: dict[str, ModelFill] = {}
        self.line: dict[str, tuple[str, float, int]] = {}  # in order: owner, deadline, charge
        self.pin_owners: dict[str, str | None] = {}

    def teardown(self) -> None:
        self.runner.run(self.ledger.aclose())
        self.runner.close()

    # ------------------------------------------------------------------------------------------------- helpers

    def do(self, work: Callable[[Transaction], T]) -> T:
        return self.runner.run(self.ledger.transact(lambda tx: work(replace(tx, now=self.now, wall=self.wall))))

    def refused(self, kind: type[StoreError], work: Callable[[Transaction], Any]) -> None:
        with pytest.raises(kind):
            self.do(work)

    def name(self, prefix: str) -> str:
        self.number += 1
        return f"{prefix}{self.number}"

    def owner(self, which: int) -> str:
        return list(self.owners)[-1 - which % len(self.owners)]

    def lives(self, owner: str | None) -> bool:
        return owner is not None and self.owners.get(owner, 0.0) > self.now

    def by_key(self, key: str) -> int | None:
        found = [number for number, entry in self.entries.items() if entry.key == key]
        return found[0] if found else None

    @property
    def used(self) -> int:
        return sum(entry.charge for entry in self.entries.values())

    @property
    def reserved(self) -> int:
        return sum(fill.charge for fill in self.fills.values())

    def state(self, before: str | None) -> PoolState:
        names = list(self.line)
        ahead = names[: names.index(before)] if before in self.line else names
        return PoolState(
            limit=self.limit,
            used=self.used,
            reserved=self.reserved,
            held=sum(entry.charge for entry in self.entries.values() if entry.held),
            waiting=sum(self.lives(self.line[name][0]) and self.line[name][1] > self.now for name in ahead),
        )

    def mark(self, chosen: tuple[ledger.Entry, ...], owner: str) -> None:
        """What the ledger chose was free to go; now it goes."""
        for entry in chosen:
            known = self.entries[entry.id]
            assert not known.held
            known.state, known.evictor = EntryState.EVICTING, owner

    # --------------------------------------------------------------------------------------------------- owners

    @initialize()
    def begin(self) -> None:
        self.do(_empty)
        self.do(lambda tx: ledger.open_pool(tx, POOL, self.limit))
        self.register()

    @rule()
    def register(self) -> None:
        owner = self.name("owner ")
        self.do(lambda tx: ledger.register(tx, POOL, owner, host="h", boot=str(self.boot), pid=1, lease_s=LEASE_S))
        self.owners[owner] = self.now + LEASE_S

    @rule(which=OWNERS)
    def renew(self, which: int) -> None:
        owner = self.owner(which)
        if self.lives(owner):
            self.do(lambda tx: ledger.renew(tx, POOL, owner, LEASE_S))
            self.owners[owner] = self.now + LEASE_S
        else:
            self.refused(LeaseLost, lambda tx: ledger.renew(tx, POOL, owner, LEASE_S))

    @rule(which=OWNERS)
    def retire(self, which: int) -> None:
        owner = self.owner(which)
        self.do(lambda tx: ledger.retire(tx, POOL, owner))
        self.owners[owner] = 0.0

    @rule(seconds=STEPS_S)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds

    @rule(seconds=st.sampled_from([-1e8, -100.0, 100.0, 1e8]))
    def the_wall_clock_is_set(self, seconds: float) -> None:
        self.wall += seconds

    @rule()
    def reboot(self) -> None:
        self.boot += 1
        self.now = 1.0
        for owner in self.owners:
            self.owners[owner] = 0.0
        self.register()

    @rule(which=OWNERS)
    def reap(self, which: int) -> None:
        owner = self.owner(which)
        if not self.lives(owner):
            self.refused(LeaseLost, lambda tx: ledger.reap(tx, POOL, owner=owner))
            return
        found = self.do(lambda tx: ledger.reap(tx, POOL, owner=owner))
        orphans = {name for name, fill in self.fills.items() if not self.lives(fill.owner)}
        assert {fill.id for fill in found.fillings} == orphans
        for name in orphans:
            self.fills[name].owner = owner
        going = {
            number
            for number, entry in self.entries.items()
            if entry.state is EntryState.EVICTING and not self.lives(entry.evictor)
        }
        assert {entry.id for entry in found.leaving} == going
        for number in going:
            self.entries[number].evictor = owner
        for pin in [pin for pin, by in self.pin_owners.items() if by is not None and not self.lives(by)]:
            self.drop_pin(pin)
        self.line = {
            name: (by, deadline, charge)
            for name, (by, deadline, charge) in self.line.items()
            if self.lives(by) and deadline > self.now
        }

    # ----------------------------------------------------------------------------------------------------- room

    @rule(units=st.integers(4, 10))
    def limit_changes(self, units: int) -> None:
        self.limit = units * UNIT
        self.do(lambda tx: ledger.open_pool(tx, POOL, self.limit))
        self.over = max(0, self.used + self.reserved - self.limit)

    @rule(which=OWNERS, key=KEYS, units=st.integers(1, 9), again=st.booleans())
    def request(self, which: int, key: str, units: int, again: bool) -> None:
        """For the first time, or as the first of those of this owner who wait."""
        owner = self.owner(which)
        mine = [name for name, (by, _, _) in self.line.items() if by == owner]
        waiter = mine[0] if again and mine else self.name("w")
        charge = self.line[waiter][2] if waiter in self.line else units * UNIT
        name = self.name("r")

        def ask(tx: Transaction) -> ledger.Answer:
            return ledger.request(
                tx, POOL, charge, reservation=name, owner=owner, key=key, waiter=waiter, wait_s=LEASE_S
            )

        if not self.lives(owner):
            self.refused(LeaseLost, ask)
            return
        expected = policy.decide(self.state(waiter), charge)
        if self.by_key(key) is not None or key in {fill.key for fill in self.fills.values()}:
            self.refused(AlreadyExists, ask)
            return
        answer = self.do(ask)
        assert answer.decision == expected
        self.mark(answer.evict, owner)
        if isinstance(expected, Grant):
            self.fills[name] = ModelFill(owner, charge, key)
        elif isinstance(expected, Evict):
            assert sum(entry.charge for entry in answer.evict) >= expected.charge
            self.line.setdefault(waiter, (owner, self.now + LEASE_S, charge))
        if isinstance(expected, Grant | Refuse):
            self.line.pop(waiter, None)

    @rule(which=OWNERS, units=UNITS)
    def wait_in_line(self, which: int, units: int) -> None:
        owner, waiter = self.owner(which), self.name("w")

        def join(tx: Transaction) -> int:
            return ledger.wait_in_line(tx, POOL, units * UNIT, waiter=waiter, owner=owner, wait_s=LEASE_S)

        if self.lives(owner):
            self.do(join)
            self.line[waiter] = (owner, self.now + LEASE_S, units * UNIT)
        else:
            self.refused(LeaseLost, join)

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(list(self.line)))
        self.do(lambda tx: ledger.leave(tx, waiter))
        del self.line[waiter]

    @precondition(lambda self: self.fills)
    @rule(data=st.data(), which=OWNERS, units=UNITS)
    def grow(self, data: st.DataObject, which: int, units: int) -> None:
        name, owner = data.draw(st.sampled_from(list(self.fills))), self.owner(which)
        if self.fills[name].owner != owner or not self.lives(owner):
            self.refused(LeaseLost, lambda tx: ledger.grow(tx, name, units * UNIT, owner=owner))
            return
        expected = policy.decide(replace(self.state(None), waiting=0), units * UNIT)
        answer = self.do(lambda tx: ledger.grow(tx, name, units * UNIT, owner=owner))
        assert answer.decision == expected
        self.mark(answer.evict, owner)
        if isinstance(expected, Grant):
            self.fills[name].charge += units * UNIT

    @precondition(lambda self: self.fills)
    @rule(data=st.data(), which=OWNERS)
    def release(self, data: st.DataObject, which: int) -> None:
        name, owner = data.draw(st.sampled_from(list(self.fills))), self.owner(which)
        mine = self.fills[name].owner == owner
        assert self.do(lambda tx: ledger.release(tx, name, owner=owner)) is mine
        if mine:
            del self.fills[name]

    # -------------------------------------------------------------------------------------------------- content

    @precondition(lambda self: self.fills)
    @rule(data=st.data(), dirty=st.booleans(), keep=st.booleans())
    def publish(self, data: st.DataObject, dirty: bool, keep: bool) -> None:
        name = data.draw(st.sampled_from(list(self.fills)))
        fill, pin = self.fills[name], self.name("p")
        facts = Facts(fill.key, "store", "ref", None, SIZE, None, 1, 1)

        def put(tx: Transaction) -> ledger.Entry:
            return ledger.publish(tx, name, facts, owner=fill.owner, pin=pin, reason="r", dirty=dirty)

        if not self.lives(fill.owner):
            self.refused(LeaseLost, put)
            return
        entry = self.do(put)
        del self.fills[name]
        self.entries[entry.id] = ModelEntry(fill.key, charge_of(SIZE), entry.state, {pin})
        assert entry.state is (EntryState.DIRTY if dirty else EntryState.READY)
        self.pin_owners[pin] = fill.owner
        if not keep:
            self.unpin_one(pin)

    @rule(which=OWNERS, key=KEYS, keep=st.booleans())
    def look(self, which: int, key: str, keep: bool) -> None:
        owner, pin = self.owner(which), self.name("p")

        def see(tx: Transaction) -> ledger.Found:
            return ledger.look(tx, POOL, key, owner=owner, pin=pin, reason="r")

        if not self.lives(owner):
            self.refused(LeaseLost, see)
            return
        found = self.do(see)
        number = self.by_key(key)
        filling = [(name, fill) for name, fill in self.fills.items() if fill.key == key]
        if number is not None and self.entries[number].state is EntryState.EVICTING:
            mine = not self.lives(self.entries[number].evictor)
            assert isinstance(found, Leaving)
            assert found.mine is mine
            if mine:
                self.entries[number].evictor = owner
        elif number is not None:
            assert isinstance(found, Hit)
            assert found.entry.id == number
            self.entries[number].pins.add(pin)
            self.pin_owners[pin] = owner
            if not keep:
                self.unpin_one(pin)
        elif not filling:
            assert found == Miss()
        elif filling[0][1].owner == owner or self.lives(filling[0][1].owner):
            assert isinstance(found, Follow)
        else:
            assert isinstance(found, TakeOver)
            filling[0][1].owner = owner

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), which=st.none() | OWNERS)
    def pin(self, data: st.DataObject, which: int | None) -> None:
        number, pin = data.draw(st.sampled_from(list(self.entries))), self.name("p")
        owner = None if which is None else self.owner(which)

        def keep(tx: Transaction) -> ledger.Entry:
            return ledger.pin(tx, POOL, number, pin=pin, owner=owner, reason="r")

        if owner is not None and not self.lives(owner):
            self.refused(LeaseLost, keep)
        elif self.entries[number].state is EntryState.EVICTING:
            self.refused(NotFound, keep)
        else:
            self.do(keep)
            self.entries[number].pins.add(pin)
            self.pin_owners[pin] = owner

    @precondition(lambda self: self.pin_owners)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        self.unpin_one(data.draw(st.sampled_from(list(self.pin_owners))))

    def unpin_one(self, pin: str) -> None:
        assert self.do(lambda tx: ledger.unpin(tx, POOL, pin))
        self.drop_pin(pin)

    def drop_pin(self, pin: str) -> None:
        del self.pin_owners[pin]
        for entry in self.entries.values():
            entry.pins.discard(pin)

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), state=st.sampled_from([EntryState.READY, EntryState.DIRTY, EntryState.UPLOADING]))
    def set_state(self, data: st.DataObject, state: EntryState) -> None:
        number = data.draw(st.sampled_from(list(self.entries)))
        if self.entries[number].state in (EntryState.EVICTING, EntryState.QUARANTINED):
            self.refused(WrongState, lambda tx: ledger.set_state(tx, POOL, number, state))
        else:
            self.do(lambda tx: ledger.set_state(tx, POOL, number, state))
            self.entries[number].state = state

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def quarantine(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(list(self.entries)))
        entry = self.entries[number]
        if entry.state is EntryState.EVICTING:
            self.refused(WrongState, lambda tx: ledger.quarantine(tx, POOL, number))
            return
        entry.key = self.do(lambda tx: ledger.quarantine(tx, POOL, number)).key
        entry.state = EntryState.QUARANTINED

    # ------------------------------------------------------------------------------------------------- eviction

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), which=OWNERS)
    def evict(self, data: st.DataObject, which: int) -> None:
        number, owner = data.draw(st.sampled_from(list(self.entries))), self.owner(which)
        if not self.lives(owner):
            self.refused(LeaseLost, lambda tx: ledger.evict(tx, POOL, number, owner=owner))
            return
        answer = self.do(lambda tx: ledger.evict(tx, POOL, number, owner=owner))
        assert isinstance(answer, ledger.Entry) is not self.entries[number].held
        if isinstance(answer, ledger.Entry):
            self.mark((answer,), owner)

    @rule(which=OWNERS, low=st.sampled_from([0.0, 0.5]), age_s=st.none() | st.just(LEASE_S))
    def relieve(self, which: int, low: float, age_s: float | None) -> None:
        owner = self.owner(which)
        limits = Limits(self.limit, high=0.75, low=low, max_idle_s=age_s)
        if not self.lives(owner):
            self.refused(LeaseLost, lambda tx: ledger.relieve(tx, POOL, limits, owner=owner))
            return
        self.mark(self.do(lambda tx: ledger.relieve(tx, POOL, limits, owner=owner)).entries, owner)

    @rule(which=OWNERS, done=st.booleans())
    def finish_evictions(self, which: int, done: bool) -> None:
        owner = self.owner(which)
        going = [number for number, entry in self.entries.items() if entry.state is EntryState.EVICTING]
        mine = [number for number in going if self.entries[number].evictor == owner]
        if done:
            freed = self.do(lambda tx: ledger.evicted(tx, POOL, going, owner=owner))
            assert freed == sum(self.entries[number].charge for number in mine)
            for number in mine:
                del self.entries[number]
            return
        self.do(lambda tx: ledger.spare(tx, POOL, going, owner=owner))
        for number in mine:
            entry = self.entries[number]
            entry.evictor = None
            entry.state = EntryState.QUARANTINED if "." in entry.key else EntryState.READY

    # ------------------------------------------------------------------------------------------------ invariants

    @invariant()
    def the_bound_holds(self) -> None:
        assert self.used + self.reserved <= self.limit + self.over
        self.over = min(self.over, max(0, self.used + self.reserved - self.limit))

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        def read(tx: Transaction) -> tuple[Any, ...]:
            run = tx.connection.execute
            return (
                ledger.check_sums(tx, POOL) if self.owners else None,
                {row.id: ModelEntry(row.key, row.charge, EntryState(row.state)) for row in run(select(entries))},
                {row.id: row.evictor for row in run(select(entries))},
                [(row.entry, row.id, row.owner) for row in run(select(pins))],
                {row.id: ModelFill(row.owner, row.charge, row.key) for row in run(select(reservations))},
                [row.id for row in run(select(waiters).order_by(waiters.c.place))],
            )

        sums, known, evictors, pinned, fills, line = self.do(read)
        if sums is not None:
            says, comes_to = sums
            assert says == comes_to
            assert (says.used, says.reserved) == (self.used, self.reserved)
            assert says.held == sum(entry.charge for entry in self.entries.values() if entry.held)
        for number, entry_id, _ in pinned:
            known[number].pins.add(entry_id)
        for number, evictor in evictors.items():
            known[number].evictor = evictor
        assert known == self.entries
        assert {pin: owner for _, pin, owner in pinned} == self.pin_owners
        assert fills == self.fills
        assert line == list(self.line)


def _empty(tx: Transaction) -> None:
    for table in reversed(metadata.sorted_tables):
        if table is not versions:
            tx.connection.execute(table.delete())


def check(make: Callable[[], Database], *, examples: int, steps: int) -> None:
    class Checked(Cache):
        database = staticmethod(make)

    run_state_machine_as_test(
        Checked,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_on_sqlite() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        check(lambda: SqliteDatabase(Path(directory) / "ledger.sqlite"), examples=25, steps=50)


def test_on_postgres(postgres: Postgres, ledger_database: str) -> None:
    url = postgres.url(ledger_database)
    check(lambda: PostgresDatabase(url, POOL, password=Secret(PASSWORD)), examples=8, steps=40)
