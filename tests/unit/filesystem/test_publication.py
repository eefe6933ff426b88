"""How a file gets its name in a directory, and what is left where its writer died."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from stores.backends.draft import link_noreplace, rename_noreplace
from stores.backends.filesystem import FilesystemStore
from stores.contract import Kind, PendingFile
from stores.errors import AlreadyExists, InvalidReference, NotFound
from stores.transfer.engine import TransferEngine
from tests.doubles.mounts import mounted_tmpfs
from tests.objects import TOKEN, refs, sending
from tests.unit.filesystem.places import files

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
