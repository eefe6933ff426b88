"""The store contract over directories on two sorts of file system."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stores.backends.filesystem import FilesystemStore
from stores.contract import DataStore, GiB, KiB, Kind
from stores.errors import AlreadyExists, IntegrityError
from stores.transfer.engine import TransferEngine
from tests.contract.store_contract import StoreContract
from tests.contract.store_hooks import WriteHooks
from tests.doubles.mounts import mounted_tmpfs
from tests.objects import TOKEN, content


class DirectoryHooks(WriteHooks):
    """Hooks into a directory."""

    root: Path
    puts = 0

    async def put_directly(self, ref: str, data: bytes) -> None:
        path = self.root / ref
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        # Before Linux 6.13 two writes within a tick have the same time; see `directory.info_of`.
        self.puts += 1
        os.utime(path, (1_000_000_000 + self.puts, 1_000_000_000 + self.puts))

    async def put_sparse_directly(self, ref: str, size: int, pieces: dict[int, bytes]) -> None:
        with (self.root / ref).open("wb") as file:
            file.truncate(size)
            for offset, piece in pieces.items():
                file.seek(offset)
                file.write(piece)

    async def read_directly(self, ref: str) -> bytes | None:
        path = self.root / ref
        return path.read_bytes() if path.exists() else None

    async def everything_left(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if not path.is_dir()}


class OverDirectory(DirectoryHooks, StoreContract):
    sparse_size = 64 * GiB + 17
    moving: TransferEngine

    @pytest.fixture
    async def engine(self) -> AsyncIterator[TransferEngine]:
        engine = TransferEngine()
        before = set(os.listdir("/proc/self/fd"))
        yield engine
        after = set(os.listdir("/proc/self/fd"))
        await engine.aclose()
        assert len(after) <= len(before), "descriptors are left open"

    @pytest.fixture
    def store(self, engine: TransferEngine) -> FilesystemStore:
        self.moving = engine
        return FilesystemStore(self.root, engine, id="directory:test", allowed=[self.root])

    async def reopened(self, store: DataStore) -> DataStore:
        return FilesystemStore(self.root, self.moving, id="directory:test", allowed=[self.root])

    async def test_file_is_filled_in_place_and_published(self, store: FilesystemStore) -> None:
        async with store.write("dir/volume", Kind.LOCAL_PATH, token=TOKEN) as pending:
            assert pending.kind is Kind.LOCAL_PATH
            path = pending.path  # type: ignore[union-attr]
            assert path.parent == self.root / "dir"
            path.write_bytes(content(100 * KiB))
            assert await self.read_directly("dir/volume") is None
            info = await pending.commit()
        assert info == await store.stat("dir/volume")
        assert await self.read_directly("dir/volume") == content(100 * KiB)
        assert await self.everything_left() == {"dir/volume"}

    async def test_abandoned_file_and_its_folders_are_removed(self, store: FilesystemStore) -> None:
        async with store.write("new/dir/volume", Kind.LOCAL_PATH, token=TOKEN) as pending:
            pending.path.write_bytes(b"partly")  # type: ignore[union-attr]
        assert list(self.root.iterdir()) == []

    async def test_file_of_wrong_size_is_not_published(self, store: FilesystemStore) -> None:
        async with store.write("volume", Kind.LOCAL_PATH, token=TOKEN, size=100) as pending:
            pending.path.write_bytes(bytes(99))  # type: ignore[union-attr]
            with pytest.raises(IntegrityError):
                await pending.commit()
        assert await self.everything_left() == set()

    async def test_taken_name_is_refused_before_anything_is_made(self, store: FilesystemStore) -> None:
        await self.put_directly("volume", b"first")
        with pytest.raises(AlreadyExists):
            async with store.write("volume", Kind.LOCAL_PATH, token=TOKEN):
                pass
        with pytest.raises(AlreadyExists):
            async with store.write("volume/below", Kind.LOCAL_PATH, token=TOKEN):
                pass
        assert await self.everything_left() == {"volume"}

    async def test_local_path_is_the_file_itself(self, store: FilesystemStore) -> None:
        await self.put_directly("dir/volume", b"content")
        info = await store.stat("dir/volume")
        async with store.present(info, Kind.LOCAL_PATH) as presentation:
            assert presentation.path == self.root / "dir/volume"  # type: ignore[union-attr]


class TestOnDisk(OverDirectory):
    @pytest.fixture(autouse=True)
    def directory(self, tmp_path: Path) -> None:
        self.root = tmp_path / "pool"
        self.root.mkdir()


class TestInMemoryFileSystem(OverDirectory):
    """tmpfs: other rules for holes, times and renames than a disk file system has."""

    @pytest.fixture(autouse=True)
    def directory(self, tmp_path: Path) -> Iterator[None]:
        with mounted_tmpfs(tmp_path / "pool", options="size=256m") as self.root:
            yield
