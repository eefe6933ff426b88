"""SMB when things go wrong: connections cut at every step, silence, full and missing shares, files in use, wrong passwords.

Samba is real. Whatever happens, an object is whole or absent, and nothing is left: no temporary file, thread, descriptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stores.backends import smb_calls as calls
from stores.backends import smb_draft
from stores.backends.smb import SmbStore
from stores.backends.smb_draft import SmbDraft
from stores.backends.smb_errors import Lost, translated
from stores.backends.smb_link import Link
from stores.backends.smb_links import Hold, Links
from stores.backends.smb_place import SmbLogin
from stores.contract import Kind, MiB, ObjectInfo, RangeReader
from stores.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidReference,
    NoSpace,
    NotFound,
    ObjectChanged,
    PolicyRefused,
    Retry,
    StorageError,
    Unavailable,
)
from stores.secret import Secret
from stores.settings import SmbSettings, StoreSettings
from stores.transfer.engine import TransferEngine
from tests.doubles.fault_proxy import FaultProxy
from tests.doubles.mounts import mounted_tmpfs
from tests.objects import TOKEN, content, read_all, refs, send, sending, sha
from tests.samba import SambaServer, run_samba

QUICK = StoreSettings(connect_timeout=5, read_timeout=5, attempts=3)
IMPATIENT = StoreSettings(connect_timeout=1, read_timeout=1, attempts=2)
SIZE = 5 * MiB + 17


@pytest.fixture(autouse=True)
def flushed_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large objects are."""
    monkeypatch.setattr(smb_draft, "FLUSHED", MiB)


@pytest.fixture
def root(samba: SambaServer) -> Path:
    """A folder of the share, empty."""
    path = samba.root / uuid.uuid4().hex
    path.mkdir()
    return path


@pytest.fixture
def nothing_left() -> Iterator[Callable[[], None]]:
    """No thread of the library and no descriptor more than before."""
    before = set(os.listdir("/proc/self/fd"))

    def check() -> None:
        assert not [thread.name for thread in threading.enumerate() if "msg_worker" in thread.name]
        assert len(os.listdir("/proc/self/fd")) <= len(before)

    yield check
    check()


@asynccontextmanager
async def opened(
    samba: SambaServer, root: Path, engine: TransferEngine, settings: StoreSettings = QUICK, **place: Any
) -> AsyncIterator[SmbStore]:
    store = SmbStore(samba.place(root.name, **place), settings, engine, id="smb:test")
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
async def store(
    nothing_left: Callable[[], None], samba: SambaServer, root: Path, engine: TransferEngine
) -> AsyncIterator[SmbStore]:
    async with opened(samba, root, engine) as store:
        yield store


@pytest.fixture
async def proxy(nothing_left: Callable[[], None], samba: SambaServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(samba.port) as proxy:
        yield proxy


async def copied(store: SmbStore, source: ObjectInfo, ref: str, *, replace: bool = False) -> ObjectInfo:
    """By the server itself."""
    async with store.copy(source, ref, token=TOKEN, replace=replace) as pending:
        return await pending.commit()


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def steps(total: int, count: int) -> list[int]:
    """Offsets of bytes from the first to the last of `total`."""
    return [1 + (total - 2) * step // (count - 1) for step in range(count)]


class TestBrokenConnections:
    async def test_write_that_is_cut_anywhere_is_whole_or_absent(
        self, samba: SambaServer, root: Path, engine: TransferEngine, proxy: FaultProxy
    ) -> None:
        data = content(SIZE)
        async with opened(samba, root, engine, port=proxy.port) as store:
            await send(store, "dir/first", data, size=SIZE)
        answered = proxy.bytes_down
        os.unlink(root / "dir/first")
        os.rmdir(root / "dir")
        outcomes = set()
        for number, at in enumerate(steps(answered, 40)):
            proxy.cut_after, proxy.cut_times = at, 1
            async with opened(samba, root, engine, port=proxy.port) as store:
                try:
                    info = await send(store, "dir/object", data, size=SIZE)
                    outcomes.add("stored")
                    assert (await store.stat("dir/object")).version == info.version
                    assert sha((root / "dir/object").read_bytes()) == sha(data)
                    assert everything(root) == {"dir", "dir/object"}
                    await store.delete("dir/object")
                    os.rmdir(root / "dir")
                except Unavailable:
                    outcomes.add("failed")
                    assert everything(root) == set(), f"cut {number} after {at} bytes"
        assert outcomes == {"stored", "failed"}

    async def test_publishing_that_did_not_reach_the_server(
        self, store: SmbStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def cut(link: Link, handle: bytes, path: str, *, replace: bool) -> None:
            link.close()
            raise Lost("cut")

        (root / "object").write_bytes(b"first")
        with monkeypatch.context() as patch:
            patch.setattr(smb_draft, "rename", cut)
            for ref in ("object", "dir/object"):
                with pytest.raises(Unavailable, match="was not stored"):
                    await send(store, ref, b"second", replace=True)
                assert (root / "object").read_bytes() == b"first"
                assert everything(root) == {"object"}
        await send(store, "object", b"second", replace=True)
        assert (root / "object").read_bytes() == b"second"

    async def test_read_goes_on_where_it_was_cut(
        self, samba: SambaServer, root: Path, engine: TransferEngine, proxy: FaultProxy
    ) -> None:
        data = content(SIZE)
        (root / "object").write_bytes(data)
        for at in steps(SIZE, 12):
            proxy.cut_after, proxy.cut_times = at, 1
            async with opened(samba, root, engine, port=proxy.port) as store:
                with contextlib.suppress(Unavailable):  # cut while it was looked at
                    info = await store.stat("object")
                    assert sha(await read_all(store, info)) == sha(data)

    async def test_read_that_is_cut_for_ever_gives_up(
        self, samba: SambaServer, root: Path, engine: TransferEngine, proxy: FaultProxy
    ) -> None:
        (root / "object").write_bytes(content(SIZE))
        async with opened(samba, root, engine, port=proxy.port) as store:
            info = await store.stat("object")
            proxy.cut_after = 1 * MiB
            with pytest.raises(Unavailable):
                await read_all(store, info)

    async def test_read_does_not_go_on_with_another_version(
        self, samba: SambaServer, root: Path, engine: TransferEngine, proxy: FaultProxy
    ) -> None:
        (root / "object").write_bytes(content(SIZE))
        async with opened(samba, root, engine, port=proxy.port) as store:
            info = await store.stat("object")
            async with store.present(info, Kind.RANGE_READER) as reader:
                assert isinstance(reader, RangeReader)
                await reader.read(0, 1000)
                (root / "new").write_bytes(content(SIZE, 2))
                os.replace(root / "new", root / "object")
                proxy.cut_after, proxy.cut_times = proxy.bytes_down + 1000, 1
                with pytest.raises(ObjectChanged):
                    await reader.read(0, 1 * MiB)

    @pytest.mark.parametrize("call", ["stat", "delete", "usage", "discard", "list"])
    async def test_short_call_survives_a_connection_that_broke_while_it_was_idle(
        self, samba: SambaServer, root: Path, engine: TransferEngine, proxy: FaultProxy, call: str
    ) -> None:
        (root / "object").write_bytes(b"x")
        async with opened(samba, root, engine, port=proxy.port) as store:
            await store.stat("object")
            proxy.cut_after, proxy.cut_times = proxy.bytes_down + 1, 1
            match call:
                case "list":
                    assert await refs(store.list()) == ["object"]
                case "usage":
                    assert (await store.usage()).used > 0
                case "discard":
                    await store.discard("object", token=TOKEN)
                case _:
                    await getattr(store, call)("object")
            assert proxy.connections == 2

    async def test_changed_bytes_are_noticed(
        self, samba: SambaServer, root: Path, engine: TransferEngine, proxy: FaultProxy
    ) -> None:
        (root / "object").write_bytes(content(SIZE))
        async with opened(samba, root, engine, port=proxy.port) as store:
            info = await store.stat("object")
            proxy.flip_at = 2 * MiB
            with pytest.raises(Unavailable):
                await read_all(store, info)

    async def test_server_that_resets_or_is_not_there(
        self, samba: SambaServer, root: Path, engine: TransferEngine, proxy: FaultProxy
    ) -> None:
        proxy.refuse = True
        async with opened(samba, root, engine, port=proxy.port) as store:
            with pytest.raises(Unavailable):
                await store.stat("object")
        async with opened(samba, root, engine, port=1) as store:
            with pytest.raises(Unavailable):
                await send(store, "object", b"x")


class TestSilence:
    async def test_server_that_falls_silent_anywhere_is_given_up(
        self, samba: SambaServer, root: Path, engine: TransferEngine, proxy: FaultProxy
    ) -> None:
        data = content(SIZE)
        async with opened(samba, root, engine, IMPATIENT, port=proxy.port) as store:
            await send(store, "first", data)
        failed = 0
        for at in steps(proxy.bytes_down, 5):
            proxy.stall_after = at
            try:
                async with opened(samba, root, engine, IMPATIENT, port=proxy.port) as store:
                    await send(store, "object", data)
            except Unavailable:
                failed += 1
            proxy.stall_after = None
            async with opened(samba, root, engine, port=proxy.port) as store:
                await store.discard("object", token=TOKEN)
                assert everything(root) <= {"first", "object"}
                if (root / "object").exists():
                    assert sha((root / "object").read_bytes()) == sha(data)
                await store.delete("object")
        assert failed >= 3

    async def test_cancelled_while_the_server_is_silent(
        self, samba: SambaServer, root: Path, engine: TransferEngine, proxy: FaultProxy
    ) -> None:
        """A call that would wait for an hour ends all the same."""
        (root / "object").write_bytes(content(SIZE))
        patient = StoreSettings(connect_timeout=5, read_timeout=3600, attempts=3)
        async with opened(samba, root, engine, patient, port=proxy.port) as store:
            info = await store.stat("object")
            proxy.stall_after = 1 * MiB
            task = asyncio.create_task(read_all(store, info))
            while proxy.bytes_down < 1 * MiB:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            proxy.stall_after = None
            assert sha(await read_all(store, info)) == sha(content(SIZE))

    @pytest.mark.parametrize("at", [1, 300, 700])
    async def test_cancelled_while_logging_in(
        self, samba: SambaServer, root: Path, engine: TransferEngine, proxy: FaultProxy, at: int
    ) -> None:
        patient = StoreSettings(connect_timeout=3600, read_timeout=3600)
        proxy.stall_after = at
        async with opened(samba, root, engine, patient, port=proxy.port) as store:
            task = asyncio.create_task(store.stat("object"))
            while proxy.bytes_down < at:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


class TestShares:
    async def test_full_share(self, samba: SambaServer, root: Path, engine: TransferEngine) -> None:
        with mounted_tmpfs(root, options="size=8m"):
            async with opened(samba, root, engine) as store:
                with pytest.raises(NoSpace) as caught:
                    async with sending(store, "dir/announced", size=9 * MiB):
                        pytest.fail("it begins all the same")
                assert int(str(caught.value.details["available"])) < 9 * MiB
                assert everything(root) == set()
                with pytest.raises(NoSpace) as caught:
                    await send(store, "dir/not announced", content(12 * MiB))
                assert {"needed", "available"} <= caught.value.details.keys()
                assert everything(root) == set()
                usage = await store.usage()
                assert usage.capacity == 8 * MiB
                await send(store, "fits", content(4 * MiB))
                assert (await store.usage()).used >= usage.used + 4 * MiB

    async def test_missing_share_and_folder(self, samba: SambaServer, root: Path, engine: TransferEngine) -> None:
        async with opened(samba, root, engine, share="none") as store:
            with pytest.raises(NotFound, match="no share"):
                await store.stat("object")
        root.rmdir()
        async with opened(samba, root, engine) as store:
            with pytest.raises(NotFound):
                await store.usage()
            with pytest.raises(NotFound):
                [info async for info in store.list()]
            with pytest.raises(NotFound):
                await send(store, "dir/object", b"x")
        assert not root.exists()

    async def test_server_that_ends_in_the_middle(self, tmp_path: Path, engine: TransferEngine) -> None:
        """And with its share comes back: what was left is found by its token."""
        with run_samba(tmp_path) as samba:
            store = SmbStore(samba.place(), QUICK, engine, id="smb:test")
            context = sending(store, "dir/object")
            pending = await context.__aenter__()
            await pending.write(memoryview(content(4 * MiB)))
        with pytest.raises(Unavailable):
            await pending.commit()
        assert not await context.__aexit__(None, None, None)
        await store.aclose()
        left = everything(tmp_path / "share")
        assert left <= {"dir"} | {name for name in left if name.endswith(".partial")}
        with run_samba(tmp_path) as samba:
            store = SmbStore(samba.place(), QUICK, engine, id="smb:test")
            await store.discard("dir/object", token=TOKEN)
            assert everything(samba.root) <= {"dir"}
            await store.aclose()


@contextlib.contextmanager
def held(samba: SambaServer, root: Path, name: str, access: int, share: int) -> Iterator[None]:
    """A file that another client has open."""
    links = Links(samba.place(root.name), QUICK, TransferEngine())
    link = links.take(Hold())
    try:
        with calls.opened(link, f"{root.name}\\{name}", access, calls.FILE, share):
            yield
    finally:
        link.close()


class TestFilesInUse:
    async def test_file_that_nobody_else_may_open(self, store: SmbStore, samba: SambaServer, root: Path) -> None:
        (root / "disk").write_bytes(content(1000))
        info = await store.stat("disk")
        with held(samba, root, "disk", calls.READ | calls.WRITE, 0):
            assert await store.stat("disk") == info  # looking disturbs nobody
            with pytest.raises(Unavailable, match="in use"):
                await read_all(store, info)
            with pytest.raises(Unavailable, match="in use"):
                await store.delete("disk")
            assert everything(root) == {"disk"}
        assert await read_all(store, info) == content(1000)

    async def test_nobody_writes_what_is_being_read(self, store: SmbStore, samba: SambaServer, root: Path) -> None:
        (root / "disk").write_bytes(content(1000))
        async with store.present(await store.stat("disk"), Kind.RANGE_READER) as reader:
            with pytest.raises(Unavailable), translated("disk"), held(samba, root, "disk", calls.WRITE, 7):
                pytest.fail("somebody writes")
            with held(samba, root, "disk", calls.READ, calls.STABLE):
                assert isinstance(reader, RangeReader)
                assert await reader.read(0, 1000) == content(1000)

    async def test_same_write_twice_at_once(self, store: SmbStore, root: Path) -> None:
        async with sending(store, "object") as first:
            with pytest.raises(AlreadyExists, match="discard"):
                await send(store, "object", b"second")
            await first.write(memoryview(b"first"))
            await first.commit()
        assert (root / "object").read_bytes() == b"first"
        assert everything(root) == {"object"}

    async def test_object_is_no_folder(self, store: SmbStore, root: Path) -> None:
        await send(store, "dir/object", b"first")
        for ref in ("dir/object/below", "dir/object/far/below", "dir"):
            for over in (False, True):
                with pytest.raises(AlreadyExists):
                    await send(store, ref, b"second", replace=over)
        assert everything(root) == {"dir", "dir/object"}

    async def test_deleting_waits_for_whoever_has_the_file_open(
        self, store: SmbStore, samba: SambaServer, root: Path
    ) -> None:
        (root / "disk").write_bytes(content(1000))
        with held(samba, root, "disk", calls.READ, calls.SHARE_ALL):
            task = asyncio.create_task(store.delete("disk"))
            while True:
                with contextlib.suppress(NotFound):
                    await store.stat("disk")
                    continue
                break
            assert not task.done()
            assert (root / "disk").exists()
        await task
        assert everything(root) == set()


class TestProtection:
    @pytest.mark.parametrize("encryption", [True, False])
    async def test_session_is_as_configured(
        self,
        samba: SambaServer,
        root: Path,
        engine: TransferEngine,
        nothing_left: Callable[[], None],
        encryption: bool,
    ) -> None:
        settings = StoreSettings(smb=SmbSettings(encryption=encryption))
        async with opened(samba, root, engine, settings) as store:
            await send(store, "object", content(SIZE))
            assert await read_all(store, await store.stat("object")) == content(SIZE)
            link = store._links._idle[-1]
            assert link.encrypted == encryption
            assert link._session.signing_required != encryption

    async def test_server_without_encryption_is_refused(
        self, tmp_path: Path, engine: TransferEngine, nothing_left: Callable[[], None]
    ) -> None:
        with run_samba(tmp_path, more="server smb encrypt = off") as samba:
            store = SmbStore(samba.place(), QUICK, engine, id="smb:test")
            with pytest.raises(PolicyRefused, match="encryption"):
                await send(store, "object", b"x")
            await store.aclose()
            assert everything(samba.root) == set()
            settings = StoreSettings(smb=SmbSettings(encryption=False))
            store = SmbStore(samba.place(), settings, engine, id="smb:test")
            await send(store, "object", b"x")
            await store.aclose()
            assert everything(samba.root) == {"object"}

    async def test_guests_session_is_refused(
        self, tmp_path: Path, engine: TransferEngine, nothing_left: Callable[[], None]
    ) -> None:
        """It would have no keys. A server gives one to users that it does not know, if it is told to."""
        with run_samba(tmp_path, more="map to guest = bad user\nguest account = root") as samba:
            place = replace(samba.place(), login=SmbLogin("nobody-there", Secret("any password")))
            store = SmbStore(place, QUICK, engine, id="smb:test")
            with pytest.raises(PolicyRefused, match="user of its own"):
                await store.usage()
            await store.aclose()

    @pytest.mark.parametrize("authentication", ["negotiate", "ntlm"])
    async def test_mechanism_is_as_configured(
        self, samba: SambaServer, root: Path, engine: TransferEngine, authentication: Any
    ) -> None:
        settings = StoreSettings(smb=SmbSettings(authentication=authentication))
        async with opened(samba, root, engine, settings) as store:
            await send(store, "object", b"x")

    async def test_wrong_password_is_told_without_it(
        self, samba: SambaServer, root: Path, engine: TransferEngine, nothing_left: Callable[[], None]
    ) -> None:
        async with opened(samba, root, engine, password="wrong-hunter2") as store:
            with pytest.raises(AccessDenied) as caught:
                await store.stat("object")
        error: BaseException | None = caught.value
        assert caught.value.retry is Retry.OPERATOR
        assert "hunter2" not in store.id + caught.value.message + str(caught.value.details)
        while error is not None:
            assert "hunter2" not in str(error)
            error = error.__cause__

    async def test_kerberos_alone_without_a_ticket_is_refused(
        self, samba: SambaServer, root: Path, engine: TransferEngine, nothing_left: Callable[[], None]
    ) -> None:
        settings = StoreSettings(smb=SmbSettings(authentication="kerberos"))
        async with opened(samba, root, engine, settings) as store:
            with pytest.raises(StorageError) as caught:
                await store.stat("object")
        assert caught.value.retry is Retry.OPERATOR


class TestNames:
    @pytest.mark.parametrize(
        "ref", ["disk:stream", "disk::$DATA", "a\\b", "dot.", "space ", "NUL", "dir/con.vhdx", "a*"]
    )
    async def test_names_with_another_meaning_are_refused(self, store: SmbStore, root: Path, ref: str) -> None:
        (root / "disk").write_bytes(b"x")
        for call in (store.stat(ref), store.delete(ref), store.discard(ref, token=TOKEN), send(store, ref, b"y")):
            with pytest.raises(InvalidReference):
                await call
        assert everything(root) == {"disk"}

    async def test_links_to_elsewhere_are_no_objects(self, store: SmbStore, root: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(b"secret")
        (root / "link").symlink_to(tmp_path / "secret")
        (root / "folder").symlink_to(tmp_path)
        for ref in ("link", "folder/secret"):
            with pytest.raises((NotFound, AccessDenied, InvalidReference)):
                await store.stat(ref)
        assert [info.ref async for info in store.list()] == []


class TestFiles:
    @pytest.mark.parametrize("granted", [1, 20, 64])
    async def test_server_that_gives_few_credits(
        self, tmp_path: Path, engine: TransferEngine, nothing_left: Callable[[], None], granted: int
    ) -> None:
        with run_samba(tmp_path, more=f"smb2 max credits = {granted}") as samba:
            store = SmbStore(samba.place(), QUICK, engine, id="smb:test")
            await send(store, "object", content(SIZE))
            assert sha((samba.root / "object").read_bytes()) == sha(content(SIZE))
            assert sha(await read_all(store, await store.stat("object"))) == sha(content(SIZE))
            await store.aclose()

    async def test_zeroes_take_their_room(self, store: SmbStore, root: Path) -> None:
        """A sparse disk is one that Hyper-V refuses."""
        await send(store, "disk.vhdx", bytes(SIZE), size=SIZE)
        status = (root / "disk.vhdx").stat()
        assert (status.st_size, status.st_blocks * 512 >= SIZE) == (SIZE, True)

    @pytest.mark.parametrize("size", [0, 1, 1 * MiB, 37 * MiB + 5])
    async def test_server_copies_by_itself(
        self, samba: SambaServer, root: Path, engine: TransferEngine, proxy: FaultProxy, size: int
    ) -> None:
        (root / "template").write_bytes(content(size))
        async with opened(samba, root, engine, port=proxy.port) as store:
            info = await copied(store, await store.stat("template"), "dir/volume")
            assert (info.ref, info.size) == ("dir/volume", size)
            assert sha((root / "dir/volume").read_bytes()) == sha(content(size))
            assert everything(root) == {"template", "dir", "dir/volume"}
            assert proxy.bytes_down < 100_000
            with pytest.raises(AlreadyExists):
                await copied(store, await store.stat("template"), "dir/volume")
            (root / "other").write_bytes(b"other")
            await copied(store, await store.stat("other"), "dir/volume", replace=True)
            assert (root / "dir/volume").read_bytes() == b"other"

    async def test_copy_of_what_changed_or_is_gone(self, store: SmbStore, root: Path) -> None:
        (root / "template").write_bytes(b"first")
        info = await store.stat("template")
        (root / "template").write_bytes(b"second")
        with pytest.raises(ObjectChanged):
            await copied(store, info, "volume")
        os.unlink(root / "template")
        with pytest.raises(NotFound):
            await copied(store, info, "volume")
        assert everything(root) == set()

    async def test_leftovers_of_a_killed_process_are_found_by_their_token(
        self, store: SmbStore, samba: SambaServer, root: Path, engine: TransferEngine
    ) -> None:
        links = Links(samba.place(root.name), QUICK, engine)
        draft = SmbDraft(links, "dir/object", token=TOKEN, size=None, replace=False)
        draft.create(Hold())
        draft.write(memoryview(content(2 * MiB)), Hold())
        assert draft._link is not None
        draft._link.close()
        (left,) = everything(root) - {"dir"}
        assert [info.ref async for info in store.list()] == []
        await store.discard("dir/object", token="another command")
        assert left in everything(root)
        await store.discard("dir/object", token=TOKEN)
        await store.discard("dir/object", token=TOKEN)
        assert everything(root) == {"dir"}
