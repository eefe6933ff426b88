"""One request for many buffers: how many requests there are, and what happens when one goes wrong half-way."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stores.contract import MiB, ObjectInfo
from stores.errors import StoreUnsupported
from stores.transfer.buffers import PIECE
from stores.transfer.engine import TransferEngine
from stores.transfer.http import HttpPatience, HttpRangeReader, HttpTarget
from stores.transfer.threads import Threads
from tests.doubles.fault_proxy import FaultProxy
from tests.doubles.scripted_http import Request, ScriptedServer
from tests.servers import NginxServer

CONTENT = os.urandom(12 * PIECE + 4321)
FIRST = 8 * PIECE
"""What one reader asks for first: the largest power of two that leaves something for later."""
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
async def engine() -> AsyncIterator[TransferEngine]:
    """Nothing of it is left at the end: no buffer, thread or descriptor."""
    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    found = TransferEngine(memory=16 * PIECE)
    yield found
    assert found.buffers.taken == 0
    await found.aclose()
    assert {t for t in threading.enumerate() if not t.name.startswith("asyncio_")} <= threads
    assert len(os.listdir("/proc/self/fd")) <= files


@pytest.fixture
async def server(engine: TransferEngine) -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer(CONTENT) as found:
        yield found


def reader_of(
    engine: TransferEngine, port: int, path: str = "/object", *, size: int = len(CONTENT), connections: int = 4
) -> HttpRangeReader:
    async def target() -> HttpTarget:
        return HttpTarget("localhost", port, "127.0.0.1", None, path)

    patience = HttpPatience(connections=connections, read_timeout_s=20, backoff_s=0)
    return HttpRangeReader(engine, ObjectInfo("object", size), target, patience=patience)


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ranges(server: ScriptedServer) -> list[tuple[int, int]]:
    """Start and end of what each request asked for."""
    found = [request.range for request in server.requests]
    return [(first, last + 1) for first, last in filter(None, found)]


@pytest.mark.parametrize(("digests", "most"), [([], 20), (["crc32c"], 40)])
async def test_requests_are_few(
    engine: TransferEngine, nginx: NginxServer, tmp_path: Path, digests: list[str], most: int
) -> None:
    path, size = f"spans-{len(digests)}", 64 * PIECE
    with (nginx.root / path).open("wb") as file:
        file.truncate(size)
    reader = reader_of(engine, nginx.port, f"/{path}", size=size)
    await engine.fetch(reader, tmp_path / "file", digests=digests)
    requests = 0
    while requests < 4:  # each is logged after its last byte
        await asyncio.sleep(0.05)
        requests = nginx.access_log.read_text().count(f"GET /{path} ")
    assert requests <= most
    (nginx.root / path).unlink()


async def test_spans_shrink_towards_the_end(engine: TransferEngine, server: ScriptedServer, tmp_path: Path) -> None:
    await engine.fetch(reader_of(engine, server.port, connections=1), tmp_path / "file")
    assert digest_of(tmp_path / "file") == DIGEST
    assert ranges(server) == [(0, FIRST), (FIRST, 12 * PIECE), (12 * PIECE, len(CONTENT))]


async def test_a_small_object_comes_over_all_connections(
    engine: TransferEngine, server: ScriptedServer, tmp_path: Path
) -> None:
    together = asyncio.Barrier(4)

    async def all_at_once(request: Request, writer: asyncio.StreamWriter) -> None:
        await together.wait()
        await server.honest(request, writer)

    server.script.extend([all_at_once] * 4)
    async with asyncio.timeout(30):
        await engine.fetch(reader_of(engine, server.port), tmp_path / "file")
    assert digest_of(tmp_path / "file") == DIGEST
    assert server.connections == 4


async def test_a_span_that_breaks_is_resumed_at_the_byte(
    engine: TransferEngine, server: ScriptedServer, tmp_path: Path
) -> None:
    server.script.extend([server.breaking_off(5 * PIECE + 100), server.breaking_off(PIECE)])
    await engine.fetch(reader_of(engine, server.port, connections=1), tmp_path / "file")
    assert digest_of(tmp_path / "file") == DIGEST
    assert ranges(server)[:3] == [(0, FIRST), (5 * PIECE + 100, FIRST), (6 * PIECE + 100, FIRST)]


@pytest.mark.parametrize("digests", [[], ["sha256"]])
async def test_spans_that_break_everywhere_arrive(
    engine: TransferEngine, server: ScriptedServer, tmp_path: Path, digests: list[str]
) -> None:
    server.always = server.breaking_off(PIECE // 3)
    found = await engine.fetch(reader_of(engine, server.port), tmp_path / "file", digests=digests)
    assert digest_of(tmp_path / "file") == DIGEST
    assert found.digests == ({"sha256": DIGEST} if digests else {})


async def test_a_server_that_sends_less_than_a_span_is_asked_for_the_rest(
    engine: TransferEngine, server: ScriptedServer, tmp_path: Path
) -> None:
    async def stingy(request: Request, writer: asyncio.StreamWriter) -> None:
        assert request.range is not None
        first, last = request.range
        short = Request(request.path, request.headers | {"range": f"bytes={first}-{min(last, first + 3_000_000)}"})
        await server.honest(short, writer)

    server.always = stingy
    await engine.fetch(reader_of(engine, server.port), tmp_path / "file")
    assert digest_of(tmp_path / "file") == DIGEST
    assert server.connections <= 4


async def test_a_server_that_closes_after_each_span(
    engine: TransferEngine, server: ScriptedServer, tmp_path: Path
) -> None:
    server.always = server.with_headers(Connection="close")
    await engine.fetch(reader_of(engine, server.port), tmp_path / "file")
    assert digest_of(tmp_path / "file") == DIGEST
    assert server.connections == len(server.requests)


@pytest.mark.parametrize("answered", [0, 2])
async def test_a_server_that_sends_everything_instead_of_a_span_is_refused(
    engine: TransferEngine, server: ScriptedServer, tmp_path: Path, answered: int
) -> None:
    async def everything(request: Request, writer: asyncio.StreamWriter) -> None:
        await server.honest(Request(request.path, {}), writer)

    server.script.extend([server.honest] * answered)
    server.always = everything
    with pytest.raises(StoreUnsupported, match="ByteStream"):
        await engine.fetch(reader_of(engine, server.port), tmp_path / "file")


async def test_a_reader_that_turns_elsewhere_within_a_span_gets_what_it_wants(
    engine: TransferEngine, server: ScriptedServer
) -> None:
    wanted = [(0, MiB), (MiB, MiB), (9 * MiB, MiB), (3 * MiB, 77)]
    parts = iter([(offset, memoryview(bytearray(length))) for offset, length in wanted])
    found: list[tuple[int, bytes]] = []
    position = 0

    def take() -> tuple[int, memoryview] | None:
        nonlocal position
        taken = next(parts, None)
        if taken is not None:
            position = taken[0] + len(taken[1])
        return taken

    threads = Threads("test-spans", 1)
    await reader_of(engine, server.port).read_each(
        take,
        lambda offset, view: found.append((offset, bytes(view))),
        threads,
        ahead=lambda: [(position, 4 * MiB)],
    )
    threads.close()
    assert found == [(offset, CONTENT[offset : offset + length]) for offset, length in wanted]
    assert ranges(server) == [(0, 5 * MiB), (9 * MiB, 14 * MiB), (3 * MiB, 7 * MiB + 77)]


@pytest.mark.parametrize("digests", [[], ["sha256"]])
@pytest.mark.parametrize("buffers", [1, 5])
async def test_many_transfers_share_little_memory(
    nginx: NginxServer, tmp_path: Path, digests: list[str], buffers: int
) -> None:
    (nginx.root / "scarce").write_bytes(CONTENT)
    engine = TransferEngine(memory=buffers * PIECE)
    async with asyncio.timeout(60):
        await asyncio.gather(
            *(
                engine.fetch(reader_of(engine, nginx.port, "/scarce"), tmp_path / str(number), digests=digests)
                for number in range(6)
            )
        )
    assert {digest_of(tmp_path / str(number)) for number in range(6)} == {DIGEST}
    assert engine.buffers.taken == 0
    await engine.aclose()


@pytest.mark.parametrize("digests", [[], ["sha256"]])
async def test_cancellation_reaches_those_who_wait_for_a_buffer(
    nginx: NginxServer, tmp_path: Path, digests: list[str]
) -> None:
    (nginx.root / "cancelled").write_bytes(CONTENT)
    engine = TransferEngine(memory=2 * PIECE)
    async with FaultProxy(nginx.port) as proxy:
        proxy.stall_after = MiB
        patience = HttpPatience(read_timeout_s=1000)

        async def target() -> HttpTarget:
            return HttpTarget("localhost", proxy.port, "127.0.0.1", None, "/cancelled")

        def fetch(number: int) -> asyncio.Task[object]:
            reader = HttpRangeReader(engine, ObjectInfo("object", len(CONTENT)), target, patience=patience)
            return asyncio.create_task(engine.fetch(reader, tmp_path / str(number), digests=digests))

        tasks = [fetch(number) for number in range(4)]
        while proxy.bytes_down < MiB:
            await asyncio.sleep(0.01)
        for task in reversed(tasks):
            task.cancel()
        async with asyncio.timeout(30):
            assert all(
                isinstance(error, asyncio.CancelledError)
                for error in await asyncio.gather(*tasks, return_exceptions=True)
            )
    assert engine.buffers.taken == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("transfer_")]
    await engine.aclose()
