"""Uploads into directories: what a crash or somebody else may have left there, and full disks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stores.backends.directory import unfinished_name
from stores.backends.filesystem import FilesystemStore
from stores.backends.filesystem_upload import PART
from stores.contract import MiB, ObjectInfo, Silent
from stores.errors import AlreadyExists, InvalidReference, NoSpace
from stores.transfer.engine import TransferEngine
from stores.transfer.sending import send_all
from tests.doubles.mounts import mounted_tmpfs
from tests.objects import content, sha

TOKEN = "command"
SIZE = 2 * PART + 5


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(content(SIZE))
    return path


def store_at(pool: Path, engine: TransferEngine) -> FilesystemStore:
    return FilesystemStore(pool, engine, id="directory:test", allowed=[pool])


async def send(store: FilesystemStore, source: Path, ref: str = "object") -> ObjectInfo:
    async with store.upload(ref, source, token=TOKEN) as upload:
        return await send_all(upload, progress=Silent())


async def test_what_a_crash_left_in_the_unfinished_file_is_not_trusted(
    pool: Path, engine: TransferEngine, source: Path
) -> None:
    """After a loss of power it may have zeroes where data were, or another length."""
    unfinished = pool / unfinished_name("object", "object", TOKEN)
    for left in (b"", bytes(SIZE), content(SIZE)[: PART + 9], content(SIZE) + b"more", content(SIZE, 2)):
        unfinished.write_bytes(left)
        await send(store_at(pool, engine), source)
        assert sha((pool / "object").read_bytes()) == sha(source.read_bytes())
        assert os.listdir(pool) == ["object"]
        (pool / "object").unlink()


async def test_name_of_the_unfinished_file_taken_by_a_link_is_refused(
    pool: Path, engine: TransferEngine, source: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (pool / unfinished_name("object", "object", TOKEN)).symlink_to(victim)
    with pytest.raises(InvalidReference):
        await send(store_at(pool, engine), source)
    assert victim.read_bytes() == b"precious"


async def test_holes_of_the_file_take_no_room(pool: Path, engine: TransferEngine, tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.truncate(4 * PART)
        file.seek(PART)
        file.write(b"data" * 1024)
    await send(store_at(pool, engine), source)
    assert (pool / "object").stat().st_blocks * 512 <= MiB
    assert sha((pool / "object").read_bytes()) == sha(source.read_bytes())


async def test_directory_of_that_name_is_left_alone(pool: Path, engine: TransferEngine, source: Path) -> None:
    (pool / "object").mkdir()
    with pytest.raises(AlreadyExists):
        await send(store_at(pool, engine), source)
    assert os.listdir(pool) == ["object"]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with mounted_tmpfs(tmp_path / "small", options="size=24m") as path:
        yield path


async def test_full_disk_is_noticed_before_a_byte_is_sent(
    small: Path, engine: TransferEngine, source: Path, tmp_path: Path
) -> None:
    store = store_at(small, engine)
    (small / "other").write_bytes(content(10 * MiB))
    with pytest.raises(NoSpace) as full:
        await send(store, source)
    assert full.value.details["needed"] == SIZE
    await store.discard("object", token=TOKEN)
    (small / "other").unlink()
    # What was sent before counts as room, too.
    async with store.upload("object", source, token=TOKEN) as upload:
        await upload.send(1)
    (small / "other").write_bytes(content(6 * MiB))
    await send(store, source)
    assert sha((small / "object").read_bytes()) == sha(source.read_bytes())
