"""What interrupted writes leave: noted before they begin, and removed as soon as the store lets us."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import structlog

from stores.backends.memory import MemoryStore
from stores.contract import Kind
from stores.errors import AccessDenied, StoreError, Unavailable
from stores.leftovers import Leftovers
from stores.to import S3TO, DataStoreTO
from stores.wrappers.base import WrapperStore
from tests.uploads import bucket


class Away(WrapperStore):
    """A store whose `discard` fails as told."""

    def __init__(self) -> None:
        super().__init__(MemoryStore("store"))
        self.failure: Exception | None = None
        self.asked: list[tuple[str, str]] = []

    async def discard(self, ref: str, *, token: str) -> None:
        self.asked.append((ref, token))
        if self.failure is not None:
            raise self.failure
        await self.inner.discard(ref, token=token)


class Place:
    """A process after the other, over one directory and one store."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "writes"
        self.store = Away()
        self.secret = "the first secret"

    def open_store(self, to: DataStoreTO) -> Away:
        assert isinstance(to, S3TO)
        assert to.secretKey is not None
        if to.secretKey.reveal() != self.secret:
            raise AccessDenied("wrong key")
        return self.store

    @asynccontextmanager
    async def process(self, *, works: bool = True) -> AsyncIterator[Leftovers]:
        found = Leftovers(self.directory, open_store=self.open_store, first_retry_s=0.01, last_retry_s=0.02)
        await found.load()
        working = asyncio.create_task(found.run()) if works else None
        try:
            yield found
        finally:
            if working is not None:
                working.cancel()
                with suppress(asyncio.CancelledError):
                    await working
            found.close()

    async def write(self, leftovers: Leftovers, ref: str, *, fails: bool = False) -> None:
        async with (
            leftovers.noted(bucket(self.secret), self.store, ref, f"of {ref}"),
            self.store.write(ref, Kind.BYTE_STREAM, token=f"of {ref}") as pending,
        ):
            assert len(self.notes()) == 1
            if fails:
                raise Unavailable("it went away")
            await pending.commit()

    def notes(self) -> list[Path]:
        return list(self.directory.iterdir())

    async def until_clean(self, leftovers: Leftovers) -> None:
        async with asyncio.timeout(30):
            while leftovers.left or self.notes():
                await asyncio.sleep(0.01)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_a_write_that_ends_well_leaves_no_note_and_asks_for_nothing(place: Place) -> None:
    async with place.process() as leftovers:
        await place.write(leftovers, "x")
        assert place.notes() == []
        await asyncio.sleep(0.05)
    assert place.store.asked == []


async def test_a_write_that_fails_is_seen_to_until_the_store_has_nothing(place: Place) -> None:
    place.store.failure = Unavailable("away")
    async with place.process() as leftovers:
        with pytest.raises(Unavailable, match="it went away"):
            await place.write(leftovers, "x", fails=True)
        async with asyncio.timeout(30):
            while len(place.store.asked) < 3:
                await asyncio.sleep(0.01)
        assert len(place.notes()) == 1
        place.store.failure = None
        await place.until_clean(leftovers)
    assert set(place.store.asked) == {("x", "of x")}


@pytest.mark.parametrize("failure", [Unavailable("away"), RuntimeError("not foreseen")])
async def test_the_next_process_sees_to_it(place: Place, failure: Exception) -> None:
    async with place.process(works=False) as leftovers:
        with pytest.raises(Unavailable):
            await place.write(leftovers, "x", fails=True)
        with pytest.raises(asyncio.CancelledError):
            async with leftovers.noted(bucket(place.secret), place.store, "y", "of y"):
                raise asyncio.CancelledError
    place.store.failure = failure
    async with place.process() as leftovers:
        assert {write.ref for write in leftovers.left} == {"x", "y"}
        async with asyncio.timeout(30):
            while len(place.store.asked) < 3:
                await asyncio.sleep(0.01)
    place.store.failure = None
    async with place.process() as leftovers:
        await place.until_clean(leftovers)
    async with place.process() as leftovers:
        assert leftovers.left == ()


async def test_keys_that_were_changed_come_with_a_command(place: Place) -> None:
    async with place.process(works=False) as leftovers:
        with pytest.raises(Unavailable):
            await place.write(leftovers, "x", fails=True)
    place.secret = "the second secret"
    async with place.process() as leftovers:
        await asyncio.sleep(0.05)
        assert place.store.asked == []
        leftovers.named(bucket(place.secret), "another store")
        await asyncio.sleep(0.05)
        assert place.store.asked == []
        leftovers.named(bucket(place.secret), place.store.id)
        await place.until_clean(leftovers)


async def test_notes_are_for_this_user_alone_and_damaged_ones_are_not_quoted(place: Place) -> None:
    async with (
        place.process() as leftovers,
        leftovers.noted(bucket(place.secret), place.store, "x", "t"),
    ):
        (note,) = place.notes()
        assert (note.stat().st_mode & 0o777, place.directory.stat().st_mode & 0o777) == (0o600, 0o700)
    for number, text in enumerate(["", "[]", "{}", '{"store": "s", "to": {"secretKey": "hidden"}, "ref": "r"}']):
        (place.directory / f"{number}.json").write_text(text)
    with structlog.testing.capture_logs() as logs:
        async with place.process() as leftovers:
            assert leftovers.left == ()
    assert [line["event"] for line in logs] == ["note of a write unreadable"] * 4
    assert "hidden" not in json.dumps(logs)
    place.directory.chmod(0o755)
    with pytest.raises(AccessDenied):
        async with place.process():
            pass


async def test_nothing_is_begun_that_could_not_be_noted(place: Place) -> None:
    async with place.process() as leftovers:
        place.directory.rmdir()
        place.directory.write_text("in the way")
        with pytest.raises(StoreError):
            await place.write(leftovers, "x")
        assert [info async for info in place.store.list()] == []
        place.directory.unlink()
