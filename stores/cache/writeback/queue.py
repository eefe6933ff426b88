"""The upload queue of one process: what is staged in its pools gets to its stores, whatever restarts and outages come.

    staging()  ->  [the caller fills a file]  ->  commit()  ->  uploaded, tried again and again  ->  stored, an event

After `commit` the bytes and the intent to upload them are durable, and go on after a crash without anybody asking: by this
process when it comes again, or by another one that shares the pool and has the store's credentials.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from stores.cache.health import PoolSick
from stores.cache.ladder import POLL_S, STEP, Turn
from stores.cache.ledger import WrongState, staged_key, uploads
from stores.cache.ledger.uploads import OVER, STAGED, Upload, Wanted
from stores.cache.pool import Pool
from stores.cache.schema import UploadState
from stores.cache.settings import WritebackSettings
from stores.cache.writeback.credentials import Credentials
from stores.cache.writeback.errors import QueueDraining, UploadUnknown
from stores.cache.writeback.order import BreakerState
from stores.cache.writeback.outcomes import outcome, over, pending
from stores.cache.writeback.staging import UNFINISHED, StagedFile, Stager, StoredFile
from stores.cache.writeback.worker import Worker
from stores.contract import DataStore, Kind, ObjectInfo, PendingFile
from stores.errors import StoreUnsupported
from stores.paths import check_ref
from stores.to import DataStoreTO

__all__ = ["Figures", "Upload", "UploadQueue", "UploadState"]

TICK_S = 5.0
ASK_S = 1.0
"""Between two looks at an upload that somebody waits for: another process may be sending it."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Figures:
    """For metrics: of all pools that are well, in bytes of content. What happened is counted since this process began."""

    unstored_bytes: int  # staged or being staged, and in no store yet
    unstored: int  # uploads: staged and not stored, those that failed included
    by_state: dict[UploadState, int]  # how many uploads
    oldest_s: float  # age of the oldest that is staged and not stored
    attempts: int
    failures: int
    stored: int
    sent_bytes: int
    resumed_bytes: int  # did not have to be sent again
    breakers: dict[str, BreakerState]  # by store id, of those that failed when they were last tried


class UploadQueue:
    """`start` after the pools, `aclose` before them. All methods may be cancelled, and leave nothing behind. Reports pass by a
    pool that is sick; whatever else needs it raises `PoolSick`."""

    def __init__(
        self,
        pools: Sequence[Pool],
        settings: WritebackSettings,
        *,
        credentials: Path,
        open_store: Callable[[DataStoreTO], DataStore],
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = random.random,
        tick_s: float = TICK_S,
    ) -> None:
        """`credentials`: a directory of mode 0700 for what the stores need to know us by, made where it is missing, but not its
        parent. `open_store`: `Resolver.store`. `clock` times breakers, `spread` gives random numbers in [0, 1) for back-off,
        `tick_s` is the longest time between two looks at what there is to do."""
        self._pools = tuple(pools)
        self._turn = Turn()
        self._credentials = Credentials(credentials)
        self._stager = Stager(pools, settings, turn=self._turn, staged=self._wake)
        self._worker = Worker(
            pools,
            settings,
            credentials=self._credentials,
            open_store=open_store,
            staging=self._stager.at_work,
            turn=self._turn,
            clock=clock,
            spread=spread,
            tick_s=tick_s,
        )
        self._tick_s = tick_s
        self._draining = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Goes on with what earlier processes left. `AccessDenied` when the directory of credentials is open to others."""
        await self._credentials.load()
        self._task = asyncio.create_task(self._keep_working(), name="upload-queue")

    async def aclose(self) -> None:
        """Stops at once; what was under way is gone on with at the next start. Idempotent."""
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._credentials.close()

    async def _keep_working(self) -> None:
        while True:
            try:
                await self._worker.run()
            except Exception:  # noqa: BLE001 - uploads go on, whatever happened
                _log.error("upload queue crashed", exc_info=True)
            await asyncio.sleep(self._tick_s)

    # ----------------------------------------------------------------------------------------------------- staging

    @asynccontextmanager
    async def staging(
        self,
        to: DataStoreTO,
        store: DataStore,
        ref: str,
        *,
        token: str,
        size: int | None,
        replace: bool,
        wait_s: float,
        announce: bool = True,
        follows: str | None = None,
    ) -> AsyncIterator[StagedFile]:
        """A file in a pool, to be filled with at most `size` bytes (None: unknown, see `StagedFile.grow`) and then committed.
        Leaving without commit removes it.

        `store` is what `to` means. `token` names the write: what is staged for the same store, ref and token already is
        `AlreadyStaged` (so ask `staged` first). Waits at most `wait_s` seconds for room, first come first served; then
        `UploadsFull` or `CacheExhausted`. `announce`: whether its end becomes an event. `follows`: the id of an upload that is
        stored before this one begins; if that is cancelled, so is this one, and what that waits for, this waits for.

        Raises as well `UploadCancelled` (see `follows`), `LargerThanCache`, `CacheUnavailable`, `QueueDraining`,
        `StoreUnsupported` where the store takes no uploads, `InvalidReference`, and `PoolSick` or `LeaseLost` when the pool is
        lost meanwhile.
        """
        check_ref(ref)
        if Kind.UPLOAD not in store.writes:
            raise StoreUnsupported(f"store {store.id} takes no uploads", store=store.id, operation="upload")
        if self._draining:
            raise QueueDraining("this host is being emptied: nothing new is staged; use another host, or wait")
        wanted = Wanted(
            id=uuid.uuid4().hex,
            key=staged_key(store.id, ref, token),
            store=store.id,
            target=to.model_dump_json(exclude_none=True),
            ref=ref,
            token=token,
            replaces=replace,
            announce=announce,
            size=STEP if size is None else size,
            follows=follows,
        )
        remember = partial(self._credentials.put, store.id, to)
        async with self._stager.staging(wanted, wait_s=wait_s, admitted=remember) as staged:
            yield staged

    @asynccontextmanager
    async def writing(
        self,
        to: DataStoreTO,
        store: DataStore,
        ref: str,
        *,
        token: str,
        size: int | None,
        replace: bool,
        wait_s: float,
        stored_s: float | None,
    ) -> AsyncIterator[PendingFile]:
        """As `staging`, for who wants it stored: `commit` waits for that, for `stored_s` seconds at most (None: as long as it
        takes); then `UploadPending`. Its end is no event."""
        staging = self.staging(to, store, ref, token=token, size=size, replace=replace, wait_s=wait_s, announce=False)
        async with staging as staged:
            yield StoredFile(staged, partial(self.stored, deadline_s=stored_s))

    async def staged(self, store: DataStore, ref: str, *, token: str) -> ObjectInfo | None:
        """What that write has staged, if it has: with `upload` while it is not stored. Raises the error of an upload that
        failed, and `UploadCancelled` for one that is being cancelled."""
        key = staged_key(store.id, ref, token)
        for pool in self._pools:
            found = await pool.transact(partial(uploads.find_by_key, pool=pool.name, key=key))
            if found is not None and found.state not in UNFINISHED:
                return outcome(found) or ObjectInfo(ref, found.size, upload=found.id)
        return None

    async def uploading(self, store: DataStore, ref: str) -> Upload | None:
        """What is staged for that object and not stored yet, whoever has staged it."""
        for found in await self.list():
            if (found.store, found.ref) == (store.id, ref) and found.state in STAGED:
                return found
        return None

    # ----------------------------------------------------------------------------------------------------- waiting

    async def stored(self, upload: str, *, deadline_s: float | None) -> ObjectInfo:
        """The object once the store has confirmed it. Raises the error of an upload that failed; `UploadCancelled`,
        `UploadUnknown`; `UploadPending` after `deadline_s` seconds (None: never)."""
        clock = asyncio.get_running_loop().time
        deadline = None if deadline_s is None else clock() + deadline_s
        while True:
            change = self._turn.next()
            _, found = await self._find(upload)
            done = outcome(found)
            if done is not None:
                return done
            left = ASK_S if deadline is None else deadline - clock()
            if left <= 0:
                raise pending(found)
            await self._turn.wait(min(left, ASK_S), change)

    async def drain(self, *, deadline_s: float | None = None) -> bool:
        """Stages nothing new from now on (until `resume`, or a restart), and waits until everything is stored, until only what
        needs an operator is left, or until the deadline. Whether everything is stored, as far as pools are well; `PoolSick`
        where one is not."""
        self._draining = True
        clock = asyncio.get_running_loop().time
        deadline = None if deadline_s is None else clock() + deadline_s
        while True:
            change = self._turn.next()
            left = await self._left()
            if left <= {UploadState.REFUSED, UploadState.FAILED}:
                return not left
            if deadline is not None and clock() >= deadline:
                return False
            await self._turn.wait(POLL_S[1], change)

    @property
    def draining(self) -> bool:
        return self._draining

    def resume(self) -> None:
        """Stage again."""
        self._draining = False

    # ---------------------------------------------------------------------------------------------------- operators

    async def list(self) -> Sequence[Upload]:
        """All that has not ended, and what has ended and is remembered; pool by pool, the oldest first."""
        found: list[Upload] = []
        for pool in self._pools:
            with suppress(PoolSick):
                found += await pool.transact(partial(uploads.list_uploads, pool=pool.name))
        return found

    async def show(self, upload: str) -> Upload:
        """Raises `UploadUnknown`."""
        return (await self._find(upload))[1]

    async def retry(self, upload: str | None = None) -> int:
        """Try now: that one, or all that wait, were refused or failed. How many. `UploadUnknown`; `UploadOver` for one that has
        ended."""
        if upload is not None:
            pool, found = await self._find(upload)
            if found.state in OVER:
                raise over(found)
            pools = [pool]
        else:
            pools = list(self._pools)
        count = 0
        for pool in pools:
            with suppress(PoolSick):
                count += await pool.transact(partial(uploads.retry, pool=pool.name, upload=upload))
        for store in [found.store] if upload is not None else self._worker.breakers():
            self._worker.probe(store)
        self._wake()
        return count

    async def cancel(self, upload: str) -> Upload:
        """Gives it up: its bytes go from this host, and what the store has of it is removed as soon as the store can be reached
        (`cancelling` until then). Idempotent. `UploadOver` when it was stored before that; `WrongState` while it is being
        staged: cancel the command that does so. Raises `UploadUnknown`."""
        pool, _ = await self._find(upload)
        found = await pool.transact(partial(uploads.begin_cancel, pool=pool.name, upload=upload))
        if found is not None and found.state in UNFINISHED:
            raise WrongState(f"{found.ref} is being staged: cancel the command that writes it", upload=upload)
        attempt = self._worker.running.get(upload)
        if attempt is not None:
            attempt.give_up()
            await attempt.over.wait()
        await self._worker.drop_copies(pool)
        self._wake()
        found = await self.show(upload)
        if found.state is UploadState.STORED:
            raise over(found)
        return found

    async def events(self, *, limit: int = 100) -> Sequence[Upload]:
        """Uploads that have ended (`stored` or `cancelled`) and were to be announced, in that order: the same ones again, also
        after a restart, until each is acknowledged."""
        found: list[Upload] = []
        for pool in self._pools:
            with suppress(PoolSick):
                found += await pool.transact(partial(uploads.ended, pool=pool.name, limit=limit))
        return found[:limit]

    async def acknowledge(self, upload: str) -> None:
        """The event of that upload has arrived where it had to: it is forgotten. Idempotent."""
        with suppress(UploadUnknown):
            pool, _ = await self._find(upload)
            await pool.transact(partial(uploads.acknowledge, pool=pool.name, upload=upload))

    async def figures(self) -> Figures:
        totals = []
        for pool in self._pools:
            with suppress(PoolSick):
                totals.append(await pool.transact(partial(uploads.totals, pool=pool.name)))
        done = self._worker.done
        return Figures(
            unstored_bytes=sum(each.bytes for each in totals),
            unstored=sum(each.count for each in totals),
            by_state={state: sum(each.by_state.get(state, 0) for each in totals) for state in UploadState},
            oldest_s=max((each.oldest_s for each in totals), default=0.0),
            attempts=done.attempts,
            failures=done.failures,
            stored=done.stored,
            sent_bytes=done.sent_bytes,
            resumed_bytes=done.resumed_bytes,
            breakers=self._worker.breakers(),
        )

    def named(self, to: DataStoreTO, store: str) -> None:
        """A command names that store (by its id): what waits for it goes on with these credentials. Never blocks."""
        if self._credentials.named(store, to):
            self._wake()

    # ------------------------------------------------------------------------------------------------------ helpers

    def _wake(self) -> None:
        self._worker.wake()

    async def _find(self, upload: str) -> tuple[Pool, Upload]:
        sick: PoolSick | None = None
        for pool in self._pools:
            try:
                found = await pool.transact(partial(uploads.find, pool=pool.name, upload=upload))
            except PoolSick as error:
                sick = error
                continue
            if found is not None:
                return pool, found
        if sick is not None:
            raise sick
        raise UploadUnknown(f"there is no upload {upload}, or it has ended and that was acknowledged", upload=upload)

    async def _left(self) -> set[UploadState]:
        """What the uploads are at that are not stored."""
        found: set[UploadState] = set()
        for pool in self._pools:
            found |= (await pool.transact(partial(uploads.totals, pool=pool.name))).by_state.keys()
        return found & {*STAGED, *UNFINISHED}
