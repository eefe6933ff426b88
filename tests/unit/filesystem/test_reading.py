"""Reading from a directory: holes, and files that change meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from stores.backends.filesystem import FilesystemStore
from stores.contract import KiB, Kind, LocalPath, MiB, RangeReader
from stores.errors import IntegrityError, ObjectChanged
from stores.transfer.engine import TransferEngine
from tests.doubles.mounts import mounted_tmpfs
from tests.objects import content, read_stream, refs, sending, sha


async def test_holes_are_told_and_data_is_where_it_is(store: FilesystemStore, pool: Path) -> None:
    with (pool / "sparse").open("wb") as file:
        file.truncate(16 * MiB)
        file.seek(4 * MiB)
        file.write(content(1 * MiB))
    async with store.present(await store.stat("sparse"), Kind.RANGE_READER) as reader:
        assert isinstance(reader, RangeReader)
        extents = [(extent.offset, extent.length, extent.zero) for extent in await reader.extents(0, 16 * MiB)]
    assert extents == [(0, 4 * MiB, True), (4 * MiB, 1 * MiB, False), (5 * MiB, 11 * MiB, True)]


async def test_change_while_it_is_read_is_noticed(store: FilesystemStore, pool: Path) -> None:
    (pool / "volume").write_bytes(content(1 * MiB))
    os.utime(pool / "volume", (1_000_000_000, 1_000_000_000))
    async with store.present(await store.stat("volume"), Kind.RANGE_READER) as reader:
        assert isinstance(reader, RangeReader)
        assert await reader.read(0, 10) == content(1 * MiB)[:10]
        with (pool / "volume").open("r+b") as file:
            file.write(b"other")
        with pytest.raises(ObjectChanged):
            await reader.read(0, 10)


async def test_file_cut_short_while_it_is_read_is_noticed(store: FilesystemStore, pool: Path) -> None:
    (pool / "volume").write_bytes(content(1 * MiB))
    async with store.present(await store.stat("volume"), Kind.RANGE_READER) as reader:
        assert isinstance(reader, RangeReader)
        os.truncate(pool / "volume", 1000)
        with pytest.raises((ObjectChanged, IntegrityError)):
            await reader.read(500 * KiB, 10)


async def test_replaced_file_is_read_to_its_end_as_it_was(store: FilesystemStore, pool: Path) -> None:
    old = content(3 * MiB, 1)
    (pool / "volume").write_bytes(old)
    async with store.present(await store.stat("volume"), Kind.BYTE_STREAM) as stream:
        async with sending(store, "volume", replace=True) as pending:
            await pending.write(memoryview(content(3 * MiB, 2)))
            await pending.commit()
        assert sha(await read_stream(stream)) == sha(old)  # type: ignore[arg-type]


async def test_changed_file_has_no_path_for_old_info(store: FilesystemStore, pool: Path) -> None:
    (pool / "volume").write_bytes(b"one")
    info = await store.stat("volume")
    async with store.present(info, Kind.LOCAL_PATH) as presentation:
        assert presentation == LocalPath(pool / "volume", info)
    (pool / "volume").write_bytes(b"other")
    with pytest.raises(ObjectChanged):
        async with store.present(info, Kind.LOCAL_PATH):
            pass


async def test_usage_is_what_the_file_system_says(tmp_path: Path, engine: TransferEngine) -> None:
    with mounted_tmpfs(tmp_path / "pool", options="size=8m") as pool:
        store = FilesystemStore(pool, engine, id="pool:1", allowed=[pool])
        empty = await store.usage()
        (pool / "volume").write_bytes(bytes(2 * MiB))
        used = await store.usage()
    assert (empty.capacity, used.capacity) == (8 * MiB, 8 * MiB)
    assert used.used - empty.used == 2 * MiB


async def test_blocking_calls_stay_off_the_event_loop(
    store: FilesystemStore, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pool / "volume").write_bytes(content(100))
    threads = set()

    def noting(call: Callable[..., object]) -> Callable[..., object]:
        def noted(*args: object) -> object:
            threads.add(threading.current_thread())
            return call(*args)

        return noted

    for name in ("fstat", "preadv", "fsync", "scandir"):
        monkeypatch.setattr(os, name, noting(getattr(os, name)))
    async with store.present(await store.stat("volume"), Kind.BYTE_STREAM) as stream:
        await read_stream(stream)  # type: ignore[arg-type]
    async with sending(store, "new") as pending:
        await pending.write(memoryview(b"x"))
        await pending.commit()
    await refs(store.list())
    await store.delete("new")
    assert threads
    assert threading.main_thread() not in threads
