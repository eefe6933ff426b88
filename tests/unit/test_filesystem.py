"""What is particular to a directory: durability, full and broken disks, names from outside, leftovers of the dead."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from stores.backends.draft import link_noreplace, rename_noreplace
from stores.backends.filesystem import FilesystemStore
from stores.contract import KiB, Kind, LocalPath, MiB, ObjectInfo, PendingFile, RangeReader
from stores.errors import (
    AlreadyExists,
    DeviceFault,
    IntegrityError,
    InvalidReference,
    NoSpace,
    NotFound,
    ObjectChanged,
    PolicyRefused,
    StorageError,
)
from stores.os_errors import translate
from stores.transfer.engine import TransferEngine
from tests.doubles.mounts import mounted_ext4, mounted_tmpfs
from tests.objects import TOKEN, content, read_stream, refs, sending, sha


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    pool = tmp_path / "pool"
    pool.mkdir()
    return pool


@pytest.fixture
def store(pool: Path, engine: TransferEngine) -> FilesystemStore:
    return FilesystemStore(pool, engine, id="pool:1", allowed=[pool])


def files(pool: Path) -> set[str]:
    return {str(path.relative_to(pool)) for path in pool.rglob("*") if not path.is_dir()}


async def kind_of_failure(store: FilesystemStore, ref: str) -> tuple[str, str]:
    with pytest.raises(StorageError) as caught:
        await store.stat(ref)
    return caught.value.kind, caught.value.message.replace(ref, "REF")


# ------------------------------------------------------------------------------------------- names from outside


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


# -------------------------------------------------------------------------------------------------- full disks


@pytest.fixture(params=["tmpfs", "ext4"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    at = tmp_path / "small"
    if request.param == "tmpfs":
        with mounted_tmpfs(at, options="size=4m"):
            yield at
    else:
        with mounted_ext4(at, tmp_path / "image", size=8 * MiB):
            yield at


def objects(pool: Path) -> set[str]:
    return files(pool) - {"lost+found"}


async def test_full_disk_is_no_space_with_numbers_and_leaves_nothing(small: Path, engine: TransferEngine) -> None:
    store = FilesystemStore(small, engine, id="pool:1", allowed=[small])
    before = (await store.usage()).used

    async def fill() -> None:
        async with sending(store, "dir/volume") as pending:
            while True:
                await pending.write(memoryview(content(256 * KiB)))

    with pytest.raises(NoSpace) as caught:
        await fill()
    needed, available = (cast(int, caught.value.details[key]) for key in ("needed", "available"))
    assert needed > available > 1 * MiB
    assert str(needed) in caught.value.message
    assert objects(small) == set()
    assert not (small / "dir").exists()
    os.sync()
    assert (await store.usage()).used <= before + 64 * KiB


async def test_announced_size_without_room_is_refused_before_a_byte(small: Path, engine: TransferEngine) -> None:
    store = FilesystemStore(small, engine, id="pool:1", allowed=[small])
    with pytest.raises(NoSpace) as caught:
        async with sending(store, "volume", size=64 * MiB):
            pass
    assert caught.value.details["needed"] == 64 * MiB
    assert 0 < cast(int, caught.value.details["available"]) < 64 * MiB
    assert objects(small) == set()


async def test_sparse_file_may_be_larger_than_the_disk(small: Path, engine: TransferEngine) -> None:
    store = FilesystemStore(small, engine, id="pool:1", allowed=[small])
    async with store.write("volume", Kind.LOCAL_PATH, token=TOKEN, size=100 * MiB) as pending:
        os.truncate(cast(PendingFile, pending).path, 100 * MiB)
        await pending.commit()
    assert (await store.stat("volume")).size == 100 * MiB


@pytest.mark.parametrize("free", [0, 1, 2])
async def test_no_inode_left_is_no_space_and_leaves_no_folder(
    tmp_path: Path, engine: TransferEngine, free: int
) -> None:
    with mounted_tmpfs(tmp_path / "pool", options=f"size=1m,nr_inodes={4 + free}") as pool:
        for number in range(3):
            (pool / str(number)).touch()
        store = FilesystemStore(pool, engine, id="pool:1", allowed=[pool])
        with pytest.raises(NoSpace) as caught:
            async with sending(store, "a/b/volume"):
                pass
        assert caught.value.details["available"] == 0
        assert sorted(os.listdir(pool)) == ["0", "1", "2"]


async def test_read_only_file_system_is_a_device_fault(tmp_path: Path, engine: TransferEngine) -> None:
    with mounted_tmpfs(tmp_path / "pool") as pool:
        (pool / "volume").write_text("x")
        subprocess.run(["mount", "-o", "remount,ro", str(pool)], check=True)
        store = FilesystemStore(pool, engine, id="pool:1", allowed=[pool])
        assert (await store.stat("volume")).size == 1
        with pytest.raises(DeviceFault) as caught:
            async with sending(store, "new"):
                pass
        assert caught.value.details["errno"] == "EROFS"
        with pytest.raises(DeviceFault):
            await store.delete("volume")


@pytest.mark.parametrize(
    ("code", "kind", "retry"),
    [
        (errno.EIO, "DeviceFault", "operator"),
        (errno.ESTALE, "DeviceFault", "operator"),
        (errno.EROFS, "DeviceFault", "operator"),
        (errno.EREMOTEIO, "DeviceFault", "operator"),
        (errno.ENOENT, "NotFound", "no"),
        (errno.EACCES, "AccessDenied", "operator"),
        (errno.EEXIST, "AlreadyExists", "no"),
        (errno.ELOOP, "InvalidReference", "no"),
        (errno.EMFILE, "Unavailable", "yes"),
    ],
)
def test_errors_of_the_system_become_ours(code: int, kind: str, retry: str) -> None:
    error = translate(OSError(code, os.strerror(code)), "volume", ref="volume")
    assert (error.kind, error.retry.value) == (kind, retry)
    assert error.details == {"errno": errno.errorcode[code], "ref": "volume"}
    assert error.message.startswith("volume ")


# ------------------------------------------------------------------------------------------------- publication


async def test_written_file_has_the_mode_that_was_configured(pool: Path, engine: TransferEngine) -> None:
    for mode in (0o600, 0o640, 0o644):
        store = FilesystemStore(pool, engine, id="pool:1", allowed=[pool], file_mode=mode)
        old = os.umask(0o077)
        try:
            async with sending(store, f"mode-{mode:o}") as pending:
                await pending.commit()
        finally:
            os.umask(old)
        assert (pool / f"mode-{mode:o}").stat().st_mode & 0o777 == mode


async def test_temporary_file_is_private_beside_its_destination_and_hidden(store: FilesystemStore, pool: Path) -> None:
    async with store.write("dir/volume", Kind.LOCAL_PATH, token=TOKEN) as pending:
        path = cast(PendingFile, pending).path
        assert path.parent == pool / "dir"
        assert path.name.startswith(".volume.")
        assert path.name.endswith(".partial")
        assert path.stat().st_mode & 0o777 == 0o600
        assert await refs(store.list()) == []
        with pytest.raises(InvalidReference):
            await store.stat(f"dir/{path.name}")
        with pytest.raises(InvalidReference):
            await store.delete(f"dir/{path.name}")


async def test_longest_name_can_be_written(store: FilesystemStore, pool: Path) -> None:
    for name in ("n" * 255, "é" * 127):
        async with sending(store, name) as pending:
            await pending.commit()
        assert (pool / name).exists()
        await store.delete(name)
    assert files(pool) == set()


async def test_tool_may_put_another_file_in_the_place_of_its_own(store: FilesystemStore, pool: Path) -> None:
    async with store.write("volume", Kind.LOCAL_PATH, token=TOKEN) as pending:
        path = cast(PendingFile, pending).path
        (pool / "made-elsewhere").write_bytes(b"whole")
        (pool / "made-elsewhere").rename(path)
        info = await pending.commit()
    assert info.size == 5
    assert files(pool) == {"volume"}


async def test_tool_cannot_have_a_link_published(store: FilesystemStore, pool: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    async with store.write("volume", Kind.LOCAL_PATH, token=TOKEN) as pending:
        path = cast(PendingFile, pending).path
        path.unlink()
        path.symlink_to(tmp_path / "secret")
        with pytest.raises(InvalidReference):
            await pending.commit()
    assert files(pool) == set()
    assert (tmp_path / "secret").exists()


async def test_file_that_its_tool_removed_is_not_found(store: FilesystemStore, pool: Path) -> None:
    async with store.write("volume", Kind.LOCAL_PATH, token=TOKEN) as pending:
        cast(PendingFile, pending).path.unlink()
        with pytest.raises(NotFound):
            await pending.commit()
    assert files(pool) == set()


async def test_replacing_a_directory_is_refused(store: FilesystemStore, pool: Path) -> None:
    (pool / "dir" / "below").mkdir(parents=True)
    for replace in (False, True):
        with pytest.raises(AlreadyExists):
            async with sending(store, "dir", replace=replace):
                pass
    assert (pool / "dir" / "below").is_dir()


@pytest.mark.parametrize("rename", [rename_noreplace, link_noreplace])
def test_both_ways_of_publishing_never_overwrite(pool: Path, rename: Callable[[int, str, str], None]) -> None:
    folder = os.open(pool, os.O_RDONLY)
    try:
        (pool / "new").write_text("new")
        rename(folder, "new", "name")
        assert files(pool) == {"name"}
        (pool / "newer").write_text("newer")
        with pytest.raises(FileExistsError):
            rename(folder, "newer", "name")
        assert (pool / "name").read_text() == "new"
        assert files(pool) == {"name", "newer"}
    finally:
        os.close(folder)


def test_link_that_was_made_by_the_lost_first_attempt_is_ours(pool: Path) -> None:
    folder = os.open(pool, os.O_RDONLY)
    try:
        (pool / "temporary").write_text("x")
        os.link(pool / "temporary", pool / "name")
        link_noreplace(folder, "temporary", "name")
        assert files(pool) == {"name"}
    finally:
        os.close(folder)


def test_file_system_without_the_flag_gets_a_link(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stores.backends.draft._RENAME_NOREPLACE", 1 << 20)  # no such flag: EINVAL, as NFS answers
    folder = os.open(pool, os.O_RDONLY)
    try:
        (pool / "temporary").write_text("x")
        rename_noreplace(folder, "temporary", "name")
        assert files(pool) == {"name"}
    finally:
        os.close(folder)


@pytest.mark.parametrize("replace", [False, True])
async def test_content_is_on_the_disk_before_its_name_and_the_name_before_success(
    store: FilesystemStore, pool: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    (pool / "a").mkdir()
    seen: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        named = (pool / "a" / "b" / "volume").exists()
        seen.append(f"{'named' if named else 'unnamed'} {path.suffix or path.relative_to(pool)}")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    async with sending(store, "a/b/volume", replace=replace) as pending:
        await pending.write(memoryview(b"content"))
        await pending.commit()
    assert seen == ["unnamed .partial", "named a/b", "named a", "named ."]


async def test_crash_between_link_and_unlink_leaves_a_whole_object(store: FilesystemStore, pool: Path) -> None:
    async with sending(store, "volume") as pending:
        await pending.write(memoryview(b"content"))
        temporary = next(path for path in pool.iterdir())
        os.link(temporary, pool / "volume")
        await store.discard("volume", token=TOKEN)
    assert files(pool) == {"volume"}
    assert (pool / "volume").read_bytes() == b"content"


async def test_folders_that_others_use_meanwhile_stay(store: FilesystemStore, pool: Path) -> None:
    async with sending(store, "a/b/one") as pending:
        await pending.write(memoryview(b"x"))
        (pool / "a" / "foreign").write_text("y")
    assert files(pool) == {"a/foreign"}
    assert not (pool / "a" / "b").exists()


# ----------------------------------------------------------------------------------------- leftovers of the dead

_WRITER = """
import asyncio, os, signal, sys
from pathlib import Path
from stores.backends.filesystem import FilesystemStore
from stores.contract import Kind
from stores.transfer.engine import TransferEngine

async def main():
    pool = Path(sys.argv[1])
    store = FilesystemStore(pool, TransferEngine(), id="pool:1", allowed=[pool])
    async with store.write("dir/volume", Kind.BYTE_STREAM, token=sys.argv[2]) as pending:
        await pending.write(memoryview(b"partly"))
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_killed_writer_is_cleaned_up_by_its_token_alone(store: FilesystemStore, pool: Path) -> None:
    for token in ("dead-1", "dead-2"):
        died = await asyncio.create_subprocess_exec(sys.executable, "-c", _WRITER, str(pool), token)
        assert await died.wait() == -signal.SIGKILL
    assert len(files(pool)) == 2
    assert await refs(store.list()) == []

    await store.discard("dir/other", token="dead-1")
    await store.discard("dir/volume", token="never-was")
    assert len(files(pool)) == 2
    await store.discard("dir/volume", token="dead-1")
    assert len(files(pool)) == 1
    await store.discard("dir/volume", token="dead-1")
    await store.discard("dir/volume", token="dead-2")
    assert files(pool) == set()

    async with sending(store, "dir/volume", token="dead-1") as pending:
        await pending.write(memoryview(b"whole"))
        await pending.commit()
    assert files(pool) == {"dir/volume"}


async def test_writers_that_clean_up_do_not_pull_the_folder_away_from_others(
    tmp_path: Path, engine: TransferEngine
) -> None:
    async def writer(store: FilesystemStore, number: int, keep: bool) -> None:
        async with sending(store, f"x/y/z/{number}", token=str(number)) as pending:
            if keep:
                await pending.commit()

    with mounted_tmpfs(tmp_path / "pool") as pool:  # where syncing costs nothing
        store = FilesystemStore(pool, engine, id="pool:1", allowed=[pool])
        for _ in range(20):
            async with asyncio.TaskGroup() as group:
                for number in range(12):
                    group.create_task(writer(store, number, keep=number == 11))
            assert files(pool) == {"x/y/z/11"}
            await store.delete("x/y/z/11")
            (pool / "x/y/z").rmdir()
            (pool / "x/y").rmdir()
            (pool / "x").rmdir()


async def test_second_writer_of_one_command_is_refused(store: FilesystemStore, pool: Path) -> None:
    async with sending(store, "volume") as pending:
        await pending.write(memoryview(b"first"))
        with pytest.raises(AlreadyExists, match="same command"):
            async with sending(store, "volume"):
                pass
        await pending.commit()
    assert (pool / "volume").read_bytes() == b"first"
    assert files(pool) == {"volume"}


async def test_discard_does_not_touch_what_was_published(store: FilesystemStore, pool: Path) -> None:
    async with sending(store, "volume") as pending:
        await pending.commit()
    await store.discard("volume", token=TOKEN)
    assert files(pool) == {"volume"}


# ------------------------------------------------------------------------------------------------------ reading


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
