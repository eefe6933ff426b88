"""An upload queue against a model: objects staged and left, a store that fails in every way, restarts, deaths, clocks that
jump, credentials that change, cancellations and retries, in any order. The promises are checked after every step."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stores.cache.ledger import check_sums
from stores.cache.schema import UploadState
from stores.cache.settings import WritebackSettings
from stores.cache.writeback.errors import UploadCancelled, UploadOver, UploadPending, UploadsFull
from stores.contract import KiB, MiB
from stores.errors import Unavailable
from tests.doubles.caches import blocks_in, numbers_of
from tests.uploads import Host, PatientClock, bucket, data_of

SIZES = [0, 100 * KiB, 900 * KiB, 2500 * KiB]
ROOM = 12 * MiB
SETTINGS = WritebackSettings(
    unstored_share=0.3, large=MiB, first_retry_s=0.005, last_retry_s=0.02, first_probe_s=0.005, last_probe_s=0.02
)
CAP = int(ROOM * 0.3)
LEASE_S = 2.0  # short: a process that slept learns of it when it next renews its lease

T = TypeVar("T")


@dataclass
class Staged:
    """A committed staging."""

    upload: str
    ref: str
    data: bytes
    cancelled: bool = False
    told_stored: bool = False


class UploadModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        structlog.configure(processors=[structlog.testing.LogCapture()])
        self.directory = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="upload-model-"))
        self.clock = PatientClock()
        self.runner = asyncio.Runner()
        self.host = self.run(self.make())
        self.run(self.host.start())
        self.staged: list[Staged] = []
        self.left: list[str] = []  # refs of what was never committed
        self.count = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(asyncio.wait_for(work, 60))

    async def make(self) -> Host:
        return Host(self.directory, settings=SETTINGS, room=ROOM, lease_s=LEASE_S, clock=self.clock)

    def next_ref(self) -> str:
        self.count += 1
        return f"object-{self.count}"

    def waiting(self) -> list[Staged]:
        return [each for each in self.staged if not each.cancelled and not each.told_stored]

    # --------------------------------------------------------------------------------------------------------- uses

    @rule(size=st.sampled_from(SIZES))
    def stage(self, size: int) -> None:
        ref = self.next_ref()
        data = data_of(ref, size)
        before = self.run(self.host.queue.figures()).unstored_bytes
        try:
            info = self.run(self.host.stage(ref, data))
        except UploadsFull:
            assert before + size > CAP
            self.left.append(ref)
            return
        assert info.upload is not None
        self.staged.append(Staged(info.upload, ref, data))

    @rule(size=st.sampled_from(SIZES), dies=st.booleans())
    def leave_in_the_middle(self, size: int, dies: bool) -> None:
        ref = self.next_ref()
        self.left.append(ref)

        async def leave() -> None:
            host = self.host
            async with host.queue.staging(
                bucket(host.secret), host.store, ref, token="t", size=size, replace=False, wait_s=0.0
            ) as pending:
                pending.path.write_bytes(bytes(size // 2))
                if dies:
                    await host.die()

        try:
            self.run(leave())
        except UploadsFull:
            return
        if dies:
            self.run(self.host.start())

    @precondition(lambda self: self.staged)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(self.staged))
        try:
            info = self.run(self.host.queue.stored(each.upload, deadline_s=0.05))
        except UploadPending:
            assert not each.told_stored
        except UploadCancelled:
            assert each.cancelled
        else:
            assert self.host.store.content(each.ref) == each.data
            assert info.size == len(each.data)
            each.told_stored = True

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(self.waiting()))
        try:
            self.run(self.host.queue.cancel(each.upload))
        except UploadOver:
            assert self.host.store.content(each.ref) == each.data
        else:
            each.cancelled = True

    @rule()
    def retry(self) -> None:
        self.run(self.host.queue.retry())

    @rule()
    def acknowledge(self) -> None:
        """What was heard of is forgotten."""

        async def hear() -> None:
            for event in await self.host.queue.events():
                (each,) = [each for each in self.staged if each.upload == event.id]
                if event.state is UploadState.STORED:
                    assert self.host.store.content(each.ref) == each.data
                else:
                    assert each.cancelled
                await self.host.queue.acknowledge(event.id)
                self.staged.remove(each)

        self.run(hear())

    # ------------------------------------------------------------------------------------------- what happens to it

    @rule(how=st.sampled_from(["down", "up", "breaks", "loses answers", "hangs"]))
    def the_store(self, how: str) -> None:
        store = self.host.store
        store.gate.set()
        store.failure = Unavailable("down") if how == "down" else None
        store.parts = 2 if how == "breaks" else None
        store.lost_answers = 2 if how == "loses answers" else 0
        if how == "hangs":
            store.gate.clear()

    @rule(heard=st.booleans())
    def credentials_change(self, heard: bool) -> None:
        """At the server; and a command with new ones, or none."""
        self.host.secret = f"secret {self.count} {heard}"
        if heard:
            self.host.queue.named(bucket(self.host.secret), self.host.store.id)

    @rule()
    def restart(self) -> None:
        self.run(self.host.stop())
        self.run(self.host.start())

    @rule()
    def die(self) -> None:
        self.run(self.host.die())
        self.run(self.host.start())

    @rule(seconds=st.sampled_from([0.5, 3600.0, 10 * 86400.0]))
    def time_passes(self, seconds: float) -> None:
        """As after a long sleep of the process: its lease ran out."""
        self.host.jump += seconds
        self.run(self.awake())

    async def awake(self) -> None:
        while not self.host.pool.lease.left_s:
            await asyncio.sleep(0.01)

    @rule(seconds=st.sampled_from([3600.0, -86400.0]))
    def the_wall_clock_jumps(self, seconds: float) -> None:
        self.host.wall_jump += seconds

    @rule()
    def nothing_happens(self) -> None:
        self.run(asyncio.sleep(0.05))

    # ------------------------------------------------------------------------------------------------- the promises

    @invariant()
    def nothing_is_stored_that_was_not_staged_nor_twice(self) -> None:
        store = self.host.store
        assert all(store.content(ref) is None for ref in self.left)
        assert all(store.content(each.ref) in (None, each.data) for each in self.staged)
        assert all(count == 1 for count in store.made.values()), store.made

    @invariant()
    def nothing_is_called_stored_before_it_is(self) -> None:
        for upload in self.run(self.host.queue.list()):
            for each in self.staged:
                if upload.id == each.upload and upload.state is UploadState.STORED:
                    assert self.host.store.content(each.ref) == each.data

    @invariant()
    def the_bounds_hold(self) -> None:
        pool = self.host.pool
        assert self.run(self.host.queue.figures()).unstored_bytes <= CAP
        numbers = self.run(numbers_of(pool))
        assert numbers.used + numbers.reserved <= numbers.limit
        says, comes_to = self.run(pool.transact(lambda tx: check_sums(tx, pool.name)))
        assert says == comes_to
        assert blocks_in(pool.settings.directory) <= pool.settings.limit

    # ------------------------------------------------------------------------------------------------------ the end

    async def all_is_over(self) -> None:
        """With a store that is well, and its credentials: what was committed is stored, what was cancelled is gone."""
        host = self.host
        host.queue.named(bucket(host.secret), host.store.id)
        await host.queue.retry()
        for each in self.staged:
            if not each.cancelled:
                await host.queue.stored(each.upload, deadline_s=30)
                assert host.store.content(each.ref) == each.data
        assert await host.queue.drain(deadline_s=30)
        while any(upload.state is UploadState.CANCELLING for upload in await host.queue.list()):
            await asyncio.sleep(0.01)
        while host.credentials():
            await asyncio.sleep(0.01)
        while True:
            try:
                await host.is_tidy()
            except AssertionError:
                await asyncio.sleep(0.1)  # what the dead have left goes after a lease
            else:
                return

    def teardown(self) -> None:
        try:
            store = self.host.store
            store.failure, store.parts, store.lost_answers = None, None, 0
            store.gate.set()
            self.run(self.all_is_over())
            self.run(self.host.stop())
        finally:
            self.runner.close()
            shutil.rmtree(self.directory)
            structlog.reset_defaults()


# Without shrinking: a failing run of that length is short enough to read.
UploadModel.TestCase.settings = settings(
    max_examples=5, stateful_step_count=25, deadline=None, phases=[Phase.explicit, Phase.generate]
)
TestUploads = UploadModel.TestCase
