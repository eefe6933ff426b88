"""`check-store` and what it stands on: it sees what is broken, ends with nothing left wherever it is interrupted, and touches
nothing of anybody else's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from stores import checking
from stores.backends.memory import MemoryStore
from stores.checking import Outcome, StoreCheck, Verdict
from stores.contract import DataStore, KiB, Kind, ObjectInfo, PendingWrite, Presentation
from stores.resolver import Resolver
from stores.settings import StoreSettings
from stores.to import S3TO, DataStoreTO
from stores.transfer.engine import TransferEngine
from stores.wrappers.base import WrapperStore
from tests.objects import send
from tests.servers import NginxServer, S3Server
from tests.swift import Container, SwiftServer

PROGRAM = str(Path(sys.executable).parent / "storage-agent")


async def checked(store: DataStore, folder: Path) -> list[Outcome]:
    async with aclosing(StoreCheck(store, uuid.uuid4().hex[:16], folder).run()) as tried:
        return [outcome async for outcome in tried]


def left(memory: MemoryStore) -> set[str]:
    assert not memory._pending
    return set(memory._objects) | {f"upload of {ref}" for ref, _ in memory._unfinished}


class Interrupting(WrapperStore):
    """Calls `interrupt` when the operation of that number begins."""

    def __init__(self, inner: DataStore, number: int) -> None:
        super().__init__(inner)
        self.begun = 0
        self.number = number
        self.task: asyncio.Task[list[Outcome]] | None = None

    def _count(self) -> None:
        self.begun += 1
        if self.begun == self.number and self.task is not None:
            self.task.cancel()

    async def stat(self, ref: str) -> ObjectInfo:
        self._count()
        return await super().stat(ref)

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        self._count()
        async with super().present(info, kind) as presentation:
            yield presentation

    @asynccontextmanager
    async def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AsyncIterator[PendingWrite]:
        self._count()
        async with super().write(ref, kind, token=token, size=size, replace=replace) as pending:
            self._count()
            yield pending


async def test_every_promise_is_kept_by_a_store_that_keeps_them(tmp_path: Path) -> None:
    memory = MemoryStore("m")
    await send(memory, "of somebody else", b"x")
    outcomes = await checked(memory, tmp_path)
    assert {outcome.verdict for outcome in outcomes} == {Verdict.OK}
    assert len(outcomes) == 15
    assert left(memory) == {"of somebody else"}


async def test_interrupted_anywhere_it_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "LARGE", 100 * KiB)
    number, ended = 0, False
    while not ended:
        number += 1
        memory = MemoryStore("m")
        store = Interrupting(memory, number)
        store.task = asyncio.create_task(checked(store, tmp_path))
        before = asyncio.all_tasks() - {store.task}
        await asyncio.wait([store.task])
        ended = not store.task.cancelled()
        assert left(memory) == set(), number
        assert asyncio.all_tasks() - {store.task} == before
    assert number > 50


class Forgetful(WrapperStore):
    """Calls what it was given stored, and keeps other bytes."""

    async def stat(self, ref: str) -> ObjectInfo:
        found = await super().stat(ref)
        return ObjectInfo(found.ref, (found.size or 0) + 1, found.version)


async def test_what_is_broken_is_told_with_what_was_seen(tmp_path: Path) -> None:
    memory = MemoryStore("m")
    outcomes = await checked(Forgetful(memory), tmp_path)
    broken = [outcome for outcome in outcomes if outcome.verdict is Verdict.BROKEN]
    assert "size and version" in broken[0].seen
    assert left(memory) == set()


async def expect_kept(to: DataStoreTO, settings: StoreSettings, engine: TransferEngine, folder: Path) -> list[Outcome]:
    resolver = Resolver(settings, engine)
    try:
        outcomes = await checked(resolver.store(to), folder)
    finally:
        await resolver.aclose()
    assert [outcome for outcome in outcomes if outcome.verdict is Verdict.BROKEN] == []
    return outcomes


async def test_s3(seaweed: S3Server, bucket: str, engine: TransferEngine, tmp_path: Path) -> None:
    to = S3TO.model_validate(
        {
            "endPoint": seaweed.endpoint,
            "accessKey": seaweed.access_key,
            "secretKey": seaweed.secret_key,
            "bucketName": bucket,
        }
    )
    await expect_kept(to, StoreSettings(), engine, tmp_path)
    client = seaweed.client()
    assert "Contents" not in client.list_objects_v2(Bucket=bucket)
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")
    client.close()


async def test_swift(swift: SwiftServer, engine: TransferEngine, tmp_path: Path) -> None:
    container = Container(swift, f"check-{uuid.uuid4().hex[:12]}")
    outcomes = await expect_kept(swift.to(container.name), StoreSettings(), engine, tmp_path)
    assert {outcome.verdict for outcome in outcomes} == {Verdict.OK}
    assert container.names() == set()
    container.ask("DELETE")


# ------------------------------------------------------------------------------------------------ the command line


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path, dict[str, str]]:
    """A store as a directory, the file that names it, and an environment that allows it."""
    root = tmp_path / "images"
    root.mkdir()
    (root / "image").write_bytes(b"of somebody else")
    file = tmp_path / "store.json"
    file.write_text(json.dumps({"storeType": "image", "uri": f"file://{root}"}))
    file.chmod(0o600)
    config = tmp_path / "agent.toml"
    config.write_text(f'[pools]\nroots = ["{root}"]\n[transfer]\nscratch_dir = "{tmp_path}"\n')
    return root, file, {**os.environ, "STORAGE_AGENT_CONFIG": str(config)}


def test_a_directory_by_the_command_line(place: tuple[Path, Path, dict[str, str]]) -> None:
    root, file, environment = place
    argv = [PROGRAM, "check-store", str(file)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "ok: every promise on offer is kept"
    assert [path for path in root.rglob("*") if path.is_file()] == [root / "image"]
    done = subprocess.run([*argv, "--json"], env=environment, capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout)["ok"] is True


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_with_nothing_left(place: tuple[Path, Path, dict[str, str]], ending: signal.Signals) -> None:
    root, file, environment = place
    for wait_for_files in (1, 3):
        process = subprocess.Popen(
            [PROGRAM, "check-store", str(file)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        while process.poll() is None and sum(path.is_file() for path in root.rglob("*")) <= wait_for_files:
            time.sleep(0.005)
        process.send_signal(ending)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert [path for path in root.rglob("*") if path.is_file()] == [root / "image"]
        assert not list(file.parent.glob("check-store-*"))


def test_file_that_others_may_read_is_refused(place: tuple[Path, Path, dict[str, str]]) -> None:
    _, file, environment = place
    file.chmod(0o640)
    done = subprocess.run([PROGRAM, "check-store", str(file)], env=environment, capture_output=True, text=True)
    assert done.returncode == 4
    assert "chmod 600" in done.stderr


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"storeType": "tape"}', '{"storeType": "s3"}'])
def test_what_is_no_store_is_refused(place: tuple[Path, Path, dict[str, str]], text: str) -> None:
    _, file, environment = place
    file.write_text(text)
    done = subprocess.run([PROGRAM, "check-store", str(file)], env=environment, capture_output=True, text=True)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr


def test_store_that_is_only_read_offers_little(nginx: NginxServer, place: tuple[Path, Path, dict[str, str]]) -> None:
    _, file, environment = place
    file.write_text(json.dumps({"storeType": "image", "uri": nginx.url("")}))
    environment |= {
        "STORAGE_AGENT__URLS__ALLOW_HTTP": "true",
        "STORAGE_AGENT__URLS__ALLOW_NETWORKS": '["127.0.0.0/8"]',
        "STORAGE_AGENT__URLS__PORTS": "[]",
    }
    done = subprocess.run([PROGRAM, "check-store", str(file)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not offered") == 14
