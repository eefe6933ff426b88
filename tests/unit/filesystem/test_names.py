"""Names from outside: links, what is no file, and directories that are not to be used."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from pathlib import Path

import pytest

from stores.backends.filesystem import FilesystemStore
from stores.contract import Kind, ObjectInfo
from stores.errors import DeviceFault, InvalidReference, NotFound, PolicyRefused, StorageError
from stores.transfer.engine import TransferEngine
from tests.doubles.mounts import mounted_tmpfs
from tests.objects import TOKEN, refs, sending
from tests.unit.filesystem.places import files


async def kind_of_failure(store: FilesystemStore, ref: str) -> tuple[str, str]:
    with pytest.raises(StorageError) as caught:
        await store.stat(ref)
    return caught.value.kind, caught.value.message.replace(ref, "REF")


async def test_refusal_does_not_tell_whether_the_target_exists(
    store: FilesystemStore, pool: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("x")
    (pool / "to-file").symlink_to(tmp_path / "secret")
    (pool / "to-none").symlink_to(tmp_path / "missing")
    (pool / "up").symlink_to("..")
    assert await kind_of_failure(store, "to-file") == await kind_of_failure(store, "to-none")
    assert await kind_of_failure(store, "up/secret") == await kind_of_failure(store, "up/missing")
    assert await kind_of_failure(store, "../secret") == await kind_of_failure(store, "../missing")
    assert (await kind_of_failure(store, "to-file"))[0] == "InvalidReference"


async def test_links_are_neither_read_written_nor_listed(store: FilesystemStore, pool: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("precious")
    (pool / "link").symlink_to(outside / "victim")
    (pool / "folder").symlink_to(outside)
    assert await refs(store.list()) == []
    with pytest.raises(InvalidReference):
        await refs(store.list("folder"))
    for ref in ("link", "folder/victim", "folder/new"):
        for replace in (False, True):
            with pytest.raises(InvalidReference):
                async with sending(store, ref, replace=replace):
                    pass
    with pytest.raises(InvalidReference):
        await store.delete("folder/victim")
    with pytest.raises(InvalidReference):
        await store.discard("folder/victim", token=TOKEN)
    assert files(outside) == {"victim"}
    assert (outside / "victim").read_text() == "precious"


async def test_deleting_a_link_removes_the_link_only(store: FilesystemStore, pool: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (pool / "link").symlink_to(tmp_path / "victim")
    await store.delete("link")
    assert (tmp_path / "victim").read_text() == "precious"


async def test_what_is_no_regular_file_is_not_opened(store: FilesystemStore, pool: Path) -> None:
    os.mkfifo(pool / "pipe")
    os.mknod(pool / "null", 0o600 | 0o020000, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(pool / "socket"))
        for name in ("pipe", "null", "socket"):
            with pytest.raises(InvalidReference):
                await store.stat(name)
            for kind in (Kind.RANGE_READER, Kind.LOCAL_PATH):
                with pytest.raises((InvalidReference, DeviceFault)):
                    async with asyncio.timeout(10), store.present(ObjectInfo(name, 0), kind):
                        pass
        assert await refs(store.list()) == []


async def test_names_that_no_ref_can_have_are_not_listed(store: FilesystemStore, pool: Path) -> None:
    for name in (b"-rf", b"line\nbreak", b"latin-\xe9", b".x.0123456789abcdef.partial", b"good"):
        (pool / os.fsdecode(name)).write_text("x")
    assert await refs(store.list()) == ["good"]


async def test_directory_outside_the_allow_list_is_refused(tmp_path: Path, engine: TransferEngine) -> None:
    allowed = tmp_path / "pools"
    allowed.mkdir()
    (allowed / "escape").symlink_to(tmp_path)
    for root in (tmp_path, allowed / "escape", Path("/etc")):
        store = FilesystemStore(root, engine, id="pool:1", allowed=[allowed])
        with pytest.raises(PolicyRefused):
            await store.usage()
        with pytest.raises(PolicyRefused):
            async with store.write("volume", Kind.LOCAL_PATH, token=TOKEN):
                pass
    assert sorted(os.listdir(tmp_path)) == ["pools"]
    assert os.listdir(allowed) == ["escape"]


async def test_missing_directory_is_not_found_even_when_deleting(tmp_path: Path, engine: TransferEngine) -> None:
    store = FilesystemStore(tmp_path / "gone", engine, id="pool:1", allowed=[tmp_path])
    with pytest.raises(NotFound, match="gone"):
        await store.stat("x")
    with pytest.raises(NotFound):
        await store.delete("x")
    with pytest.raises(NotFound):
        await refs(store.list())


async def test_nothing_is_written_where_nothing_is_mounted(tmp_path: Path, engine: TransferEngine) -> None:
    pool = tmp_path / "mnt" / "uuid"
    pool.mkdir(parents=True)
    store = FilesystemStore(pool, engine, id="pool:1", allowed=[tmp_path], mounted=True)
    with pytest.raises(DeviceFault, match="mounted"):
        async with sending(store, "volume"):
            pass
    assert files(pool) == set()
    with mounted_tmpfs(pool):
        async with sending(store, "volume") as pending:
            await pending.write(memoryview(b"content"))
            await pending.commit()
        assert files(pool) == {"volume"}
    with pytest.raises(DeviceFault):
        await store.stat("volume")


async def test_bind_mount_counts_as_mounted(tmp_path: Path, engine: TransferEngine) -> None:
    pool, source = tmp_path / "pool", tmp_path / "source"
    pool.mkdir()
    source.mkdir()
    (source / "volume").write_text("x")
    subprocess.run(["mount", "--bind", str(source), str(pool)], check=True)
    try:
        store = FilesystemStore(pool, engine, id="pool:1", allowed=[tmp_path], mounted=True)
        assert (await store.stat("volume")).size == 1
    finally:
        subprocess.run(["umount", str(pool)], check=True)
