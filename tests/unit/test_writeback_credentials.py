"""Credentials for uploads: kept for this user alone, over restarts, as long as they are needed, and the last ones that came."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog

from stores.cache.writeback.credentials import Credentials
from stores.errors import AccessDenied, StorageError
from stores.to import S3TO, DataStoreTO, ImageStoreTO, NfsTO, PrimaryDataStoreTO, SwiftTO

TOS: list[DataStoreTO] = [
    S3TO.model_validate(
        {"bucketName": "b", "accessKey": "a", "secretKey": "hidden", "endPoint": "h", "httpsFlag": True}
    ),
    NfsTO.model_validate({"_url": "cifs://host/share?user=u&password=hidden", "_role": "Image"}),
    SwiftTO.model_validate({"url": "http://h", "account": "a", "userName": "u", "key": "hidden"}),
    PrimaryDataStoreTO.model_validate({"uuid": "u", "poolType": "Filesystem", "details": {"chap": "hidden"}}),
    ImageStoreTO.model_validate({"uri": "https://user:hidden@host/base", "role": "Image"}),
]


def bucket(secret: str) -> S3TO:
    return S3TO.model_validate({"bucketName": "b", "accessKey": "a", "secretKey": secret})


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Credentials]:
    found = Credentials(directory)
    try:
        await found.load()
        yield found
    finally:
        found.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("upload-credentials")]


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


@pytest.mark.parametrize("to", TOS, ids=lambda to: to.storeType)
async def test_they_come_back_as_they_were(tmp_path: Path, to: DataStoreTO) -> None:
    async with opened(tmp_path / "c") as first:
        await first.put("store", to)
    (path,) = files(tmp_path / "c")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert "hidden" in path.read_text()
    assert "store" not in path.name
    async with opened(tmp_path / "c") as second:
        assert second.get("store") == to


async def test_the_last_ones_count(tmp_path: Path) -> None:
    async with opened(tmp_path / "c") as first:
        await first.put("store", bucket("old"))
        assert not first.named("store", bucket("old"))
        assert not first.named("another", bucket("new"))
        assert first.named("store", bucket("new"))
        assert first.get("store") == bucket("new"), "at once"
        assert await first.save() == {"store"}
        assert await first.save() == set()
    async with opened(tmp_path / "c") as second:
        assert second.get("store") == bucket("new")
        assert second.get("another") is None


async def test_they_go_when_nothing_needs_them(tmp_path: Path) -> None:
    async with opened(tmp_path / "c") as kept:
        for store in ("a", "b"):
            await kept.put(store, bucket(store))
        before = kept.changes
        await kept.sweep({"a"}, seen=before)
        assert (kept.get("a"), kept.get("b")) == (bucket("a"), None)
        assert len(files(tmp_path / "c")) == 1
        await kept.put("b", bucket("b"))
        await kept.sweep(set(), seen=before)
        assert kept.get("a") is None
        assert kept.get("b") == bucket("b"), "somebody has just asked for them to be kept"


async def test_a_crash_in_the_middle_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path / "c") as kept:
        await kept.put("store", bucket("old"))
        with monkeypatch.context() as broken:
            broken.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(StorageError):
                await kept.put("store", bucket("new"))
        other = Credentials(tmp_path / "c")
        await other.load()
        other.close()
        assert other.get("store") == bucket("old")
        assert await kept.save() == {"store"}, "tried again"
    async with opened(tmp_path / "c") as again:
        assert again.get("store") == bucket("new")
    assert len(files(tmp_path / "c")) == 1


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o707])
async def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c").chmod(mode)
    with pytest.raises(AccessDenied, match="mode 700"):
        async with opened(tmp_path / "c"):
            pass


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"store": 1}', b'{"store": "s", "to": {"secretKey": "hidden"}}', b"\xff"]
)
async def test_what_cannot_be_read_is_passed_by_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    async with opened(tmp_path / "c") as kept:
        await kept.put("store", bucket("good"))
    (tmp_path / "c" / "damaged.json").write_bytes(content)
    with structlog.testing.capture_logs() as logs:
        async with opened(tmp_path / "c") as kept:
            assert kept.get("store") == bucket("good")
    assert [line["event"] for line in logs] == ["upload credentials unreadable"]
    assert "hidden" not in json.dumps(logs)


async def test_many_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "c") as kept:
        await asyncio.gather(*(kept.put(f"store {number % 3}", bucket(str(number))) for number in range(12)))
        last = {store: kept.get(store) for store in ("store 0", "store 1", "store 2")}
    async with opened(tmp_path / "c") as again:
        assert {store: again.get(store) for store in last} == last
