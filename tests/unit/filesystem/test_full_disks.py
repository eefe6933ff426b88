"""Directories on full and on broken disks."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from stores.backends.filesystem import FilesystemStore
from stores.contract import KiB, Kind, MiB, PendingFile
from stores.errors import DeviceFault, NoSpace
from stores.os_errors import translate
from stores.transfer.engine import TransferEngine
from tests.doubles.mounts import mounted_ext4, mounted_tmpfs
from tests.objects import TOKEN, content, sending
from tests.unit.filesystem.places import files


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
