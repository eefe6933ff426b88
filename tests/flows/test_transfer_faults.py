"""Transfers from real and from misbehaving HTTP servers: the content arrives or a typed error does, and nothing is left."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from stores.contract import MiB, ObjectInfo
from stores.errors import (
    AccessDenied,
    IntegrityError,
    NotFound,
    ObjectChanged,
    StoreError,
    StoreUnsupported,
    TlsFailed,
    Unavailable,
)
from stores.transfer.buffers import PIECE
from stores.transfer.engine import TransferEngine
from stores.transfer.http import HttpByteStream, HttpPatience, HttpRangeReader, HttpTarget
from tests.doubles.fault_proxy import FaultProxy
from tests.doubles.scripted_http import Request, ScriptedServer, Step, raw, silence, status
from tests.servers import NginxServer

CONTENT = os.urandom(7 * PIECE + 4321)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
QUICK = HttpPatience(connections=4, connect_timeout_s=5, read_timeout_s=0.3, attempts=4)


class Sleeps:
    """Records pauses instead of making them."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
async def engine(nginx: NginxServer) -> AsyncIterator[TransferEngine]:
    """Nothing of it is left at the end: no buffer, thread, descriptor or task."""
    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    found = TransferEngine(memory=8 * PIECE)
    yield found
    assert found.buffers.taken == 0
    await found.aclose()
    assert {t for t in threading.enumerate() if not t.name.startswith("asyncio_")} <= threads
    for _ in range(100):  # the test's own servers close their ends in this process too, a moment later
        if len(os.listdir("/proc/self/fd")) <= files:
            break
        await asyncio.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= files


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer(CONTENT) as found:
        yield found


@pytest.fixture(scope="module")
def published(nginx: NginxServer) -> str:
    (nginx.root / "transfer").write_bytes(CONTENT)
    return "transfer"


def at(port: int, path: str = "/object", tls: ssl.SSLContext | None = None) -> Callable[[], asyncio.Future[HttpTarget]]:
    def target() -> asyncio.Future[HttpTarget]:
        found = asyncio.get_running_loop().create_future()
        found.set_result(HttpTarget("localhost", port, "127.0.0.1", tls, path))
        return found

    return target


def reader_of(
    engine: TransferEngine,
    port: int,
    path: str = "/object",
    *,
    version: str | None = '"v1"',
    patience: HttpPatience = QUICK,
    tls: ssl.SSLContext | None = None,
    sleep: Sleeps | None = None,
) -> HttpRangeReader:
    info = ObjectInfo("object", len(CONTENT), version=version)
    return HttpRangeReader(engine, info, at(port, path, tls), patience=patience, sleep=sleep or Sleeps())


async def fetched(engine: TransferEngine, reader: HttpRangeReader, directory: Path) -> str:
    """Digest of what arrived, taken from the file, after the engine's own agreed with it."""
    found = await engine.fetch(reader, directory / "file", digests=["sha256"])
    on_disk = hashlib.sha256((directory / "file").read_bytes()).hexdigest()
    assert found.digests == {"sha256": on_disk}
    return on_disk


# ------------------------------------------------------------------------------------------------ real servers


@pytest.mark.parametrize("tls", [False, True])
async def test_content_arrives(
    engine: TransferEngine, nginx: NginxServer, published: str, tmp_path: Path, tls: bool
) -> None:
    context = ssl.create_default_context(cafile=str(nginx.ca_file)) if tls else None
    port = nginx.tls_port if tls else nginx.port
    reader = reader_of(engine, port, f"/{published}", version=None, tls=context)
    assert await fetched(engine, reader, tmp_path) == DIGEST


@pytest.mark.parametrize("location", ["flaky503", "flakydrop"])
async def test_content_arrives_from_an_unreliable_server(
    engine: TransferEngine, nginx: NginxServer, published: str, tmp_path: Path, location: str
) -> None:
    patience = HttpPatience(attempts=30)
    reader = reader_of(engine, nginx.port, f"/{location}/{published}", version=None, patience=patience)
    assert await fetched(engine, reader, tmp_path) == DIGEST


async def test_an_untrusted_certificate_is_refused_at_once(
    engine: TransferEngine, nginx: NginxServer, published: str, tmp_path: Path
) -> None:
    reader = reader_of(engine, nginx.tls_port, f"/{published}", version=None, tls=ssl.create_default_context())
    with pytest.raises(TlsFailed, match="certificate"):
        await fetched(engine, reader, tmp_path)


async def test_a_missing_object_is_not_found(engine: TransferEngine, nginx: NginxServer, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await fetched(engine, reader_of(engine, nginx.port, "/missing", version=None), tmp_path)


async def test_a_server_without_ranges_is_named_by_readers_and_served_by_streams(
    engine: TransferEngine, nginx: NginxServer, published: str, tmp_path: Path
) -> None:
    path = f"/norange/{published}"
    with pytest.raises(StoreUnsupported, match="ByteStream"):
        await fetched(engine, reader_of(engine, nginx.port, path, version=None), tmp_path)
    stream = HttpByteStream(engine, ObjectInfo("object", len(CONTENT)), at(nginx.port, path))
    found = await engine.store_stream(stream, tmp_path / "stream", digests=["sha256"])
    assert found.digests == {"sha256": DIGEST}
    assert (tmp_path / "stream").read_bytes() == CONTENT


@pytest.mark.parametrize("tls", [False, True])
async def test_connections_that_are_cut_are_resumed_at_the_byte(
    engine: TransferEngine, nginx: NginxServer, published: str, tmp_path: Path, tls: bool
) -> None:
    context = ssl.create_default_context(cafile=str(nginx.ca_file)) if tls else None
    async with FaultProxy(nginx.tls_port if tls else nginx.port) as proxy:
        proxy.cut_after, proxy.cut_times = MiB + 777, 9
        reader = reader_of(engine, proxy.port, f"/{published}", version=None, tls=context)
        assert await fetched(engine, reader, tmp_path) == DIGEST
        assert proxy.cut_times == 0
        # What came before a cut is not asked for again, but for what was on its way when it was lost.
        assert proxy.bytes_down < len(CONTENT) * 1.5


async def test_a_flipped_byte_shows_in_the_digest_on_plain_http_and_never_passes_tls(
    engine: TransferEngine, nginx: NginxServer, published: str, tmp_path: Path
) -> None:
    async with FaultProxy(nginx.port) as proxy:
        proxy.flip_at = PIECE // 2
        assert await fetched(engine, reader_of(engine, proxy.port, f"/{published}", version=None), tmp_path) != DIGEST
    async with FaultProxy(nginx.tls_port) as proxy:
        proxy.flip_at = PIECE // 2
        context = ssl.create_default_context(cafile=str(nginx.ca_file))
        reader = reader_of(engine, proxy.port, f"/{published}", version=None, tls=context)
        assert await fetched(engine, reader, tmp_path) == DIGEST


async def test_a_server_that_refuses_connections_is_unavailable(engine: TransferEngine, nginx: NginxServer) -> None:
    sleeps = Sleeps()
    async with FaultProxy(nginx.port) as proxy:
        proxy.refuse = True
        with pytest.raises(Unavailable):
            await reader_of(engine, proxy.port, sleep=sleeps).read(0, 10)
        port = proxy.port
    assert len(sleeps.pauses) == QUICK.attempts - 1
    with pytest.raises(Unavailable, match="cannot connect"):
        await reader_of(engine, port).read(0, 10)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_stalled_server_is_unavailable_after_the_read_timeout(
    engine: TransferEngine, nginx: NginxServer, published: str, tls: bool
) -> None:
    context = ssl.create_default_context(cafile=str(nginx.ca_file)) if tls else None
    patience = HttpPatience(read_timeout_s=0.2, attempts=2)
    async with FaultProxy(nginx.tls_port if tls else nginx.port) as proxy:
        proxy.stall_after = 5_000
        reader = reader_of(engine, proxy.port, f"/{published}", version=None, patience=patience, tls=context)
        with pytest.raises(Unavailable, match=r"sent nothing for 0\.2 s"):
            await reader.read(0, PIECE)


@pytest.mark.parametrize("tls", [False, True])
async def test_cancellation_is_at_once_and_leaves_nothing(
    engine: TransferEngine, nginx: NginxServer, published: str, tmp_path: Path, tls: bool
) -> None:
    context = ssl.create_default_context(cafile=str(nginx.ca_file)) if tls else None
    patience = HttpPatience(read_timeout_s=1000)
    async with FaultProxy(nginx.tls_port if tls else nginx.port) as proxy:
        proxy.stall_after = MiB
        reader = reader_of(engine, proxy.port, f"/{published}", version=None, patience=patience, tls=context)
        task = asyncio.create_task(engine.fetch(reader, tmp_path / "file", digests=["sha256"]))
        while proxy.bytes_down < 4 * MiB:
            await asyncio.sleep(0.01)
        task.cancel()
        async with asyncio.timeout(30):
            with pytest.raises(asyncio.CancelledError):
                await task
        assert engine.buffers.taken == 0
        assert {t for t in threading.enumerate() if t.name.startswith("transfer_")} == set()


async def test_slow_transfers_hold_up_neither_the_loop_nor_a_fast_one(
    engine: TransferEngine, nginx: NginxServer, published: str, tmp_path: Path
) -> None:
    async with FaultProxy(nginx.port) as proxy:
        proxy.rate = 200_000
        patience = HttpPatience(read_timeout_s=1000)
        slow = [
            asyncio.create_task(
                engine.fetch(
                    reader_of(engine, proxy.port, f"/{published}", version=None, patience=patience),
                    tmp_path / f"slow{number}",
                )
            )
            for number in range(3)
        ]
        while proxy.bytes_down < MiB:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(60):
            assert (
                await fetched(engine, reader_of(engine, nginx.port, f"/{published}", version=None), tmp_path) == DIGEST
            )
        assert not any(task.done() for task in slow)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)


# -------------------------------------------------------------------------------------------- scripted answers


async def test_keep_alive_and_conditions(engine: TransferEngine, server: ScriptedServer, tmp_path: Path) -> None:
    assert await fetched(engine, reader_of(engine, server.port), tmp_path) == DIGEST
    assert {request.headers["if-match"] for request in server.requests} == {'"v1"'}
    assert server.connections <= 4 < len(server.requests)
    assert server.requests[0].headers["host"] == f"localhost:{server.port}"


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"Content_Range": ""}, IntegrityError),
        ({"Content_Range": f"bytes 1-{PIECE}/{len(CONTENT)}"}, IntegrityError),
        ({"Content_Length": "5"}, IntegrityError),
        ({"Content_Length": ""}, IntegrityError),
        ({"ETag": '"v2"'}, ObjectChanged),
        ({"Content_Range": f"bytes 0-{PIECE - 1}/{len(CONTENT) + 1}"}, ObjectChanged),
    ],
)
async def test_contradictory_answers_are_refused(
    engine: TransferEngine, server: ScriptedServer, changed: dict[str, str], error: type[StoreError]
) -> None:
    server.always = server.with_headers(**changed)
    with pytest.raises(error) as failure:
        await reader_of(engine, server.port).read(0, PIECE)
    assert type(failure.value) is error
    assert len(server.requests) == 1


async def test_a_changed_object_ends_the_transfer(
    engine: TransferEngine, server: ScriptedServer, tmp_path: Path
) -> None:
    served = 0

    async def changing(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        if served == 3:
            server.etag = '"v2"'
        await server.honest(request, writer)

    server.always = changing
    with pytest.raises(ObjectChanged):
        await fetched(engine, reader_of(engine, server.port), tmp_path)


async def test_ends_and_shrunk_objects_are_integrity_errors(engine: TransferEngine, server: ScriptedServer) -> None:
    reader = reader_of(engine, server.port)
    with pytest.raises(IntegrityError):
        await reader.read(len(CONTENT) - 1, 2)
    assert server.requests == []
    server.always = status(416)
    with pytest.raises(IntegrityError):
        await reader.read(0, 2)


async def test_a_partial_range_is_completed(engine: TransferEngine, server: ScriptedServer) -> None:
    async def stingy(request: Request, writer: asyncio.StreamWriter) -> None:
        assert request.range is not None
        first, last = request.range
        short = Request(request.path, request.headers | {"range": f"bytes={first}-{min(last, first + 99_999)}"})
        await server.honest(short, writer)

    server.always = stingy
    assert await reader_of(engine, server.port).read(5, 450_000) == CONTENT[5:450_005]
    assert len(server.requests) == 5


async def test_a_broken_answer_is_resumed_where_it_broke(engine: TransferEngine, server: ScriptedServer) -> None:
    server.script.extend([server.breaking_off(100_000), server.breaking_off(70_000)])
    assert await reader_of(engine, server.port).read(0, 300_000) == CONTENT[:300_000]
    assert [request.range for request in server.requests] == [(0, 299_999), (100_000, 299_999), (170_000, 299_999)]


async def test_attempts_end_when_nothing_comes(engine: TransferEngine, server: ScriptedServer) -> None:
    sleeps = Sleeps()
    server.always = server.breaking_off(10)
    with pytest.raises(Unavailable, match="broke off"):
        await reader_of(engine, server.port, sleep=sleeps).read(0, 300_000)
    assert len(server.requests) == QUICK.attempts
    assert len(sleeps.pauses) == QUICK.attempts - 1


async def test_a_storm_of_503_is_waited_out_as_the_server_asks(engine: TransferEngine, server: ScriptedServer) -> None:
    sleeps = Sleeps()
    server.script.extend([status(503, "Retry-After: 17", body=b"busy"), status(429), status(500)])
    assert await reader_of(engine, server.port, sleep=sleeps).read(0, 10) == CONTENT[:10]
    assert sleeps.pauses[0] == 17
    assert all(0 < pause < 17 for pause in sleeps.pauses[1:])
    assert server.connections == 1


async def test_a_lasting_503_is_unavailable(engine: TransferEngine, server: ScriptedServer) -> None:
    server.always = status(503)
    with pytest.raises(Unavailable) as failure:
        await reader_of(engine, server.port).read(0, 10)
    assert failure.value.details["status"] == 503
    assert len(server.requests) == QUICK.attempts


@pytest.mark.parametrize(
    "step",
    [
        raw(b""),
        raw(b"HTTP/1.1 206 Partial"),
        raw(b"garbage\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n" + b"x" * 100_000),
        silence,
    ],
    ids=["closed", "cut head", "garbage", "endless head", "silence"],
)
async def test_what_is_no_answer_is_tried_again(engine: TransferEngine, server: ScriptedServer, step: Step) -> None:
    server.script.append(step)
    assert await reader_of(engine, server.port).read(0, 10) == CONTENT[:10]
    server.always = step
    with pytest.raises(Unavailable):
        await reader_of(engine, server.port).read(0, 10)


async def test_a_kept_connection_that_was_closed_costs_no_attempt(
    engine: TransferEngine, server: ScriptedServer
) -> None:
    sleeps = Sleeps()
    reader = reader_of(engine, server.port, sleep=sleeps)
    await reader.read(0, 10)
    server.script.append(raw(b""))
    assert await reader.read(0, 10) == CONTENT[:10]
    assert sleeps.pauses == []
    assert server.connections == 2


async def test_a_kept_connection_does_not_lend_its_timeout(engine: TransferEngine, server: ScriptedServer) -> None:
    await reader_of(engine, server.port, patience=HttpPatience(read_timeout_s=1000)).read(0, 10)
    server.script.extend([silence] * 2)
    patience = HttpPatience(read_timeout_s=0.2, attempts=2)
    with pytest.raises(Unavailable, match=r"sent nothing for 0\.2 s"):
        await reader_of(engine, server.port, patience=patience).read(0, 10)


async def test_unused_connections_are_closed_after_a_while(
    engine: TransferEngine, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stores.transfer.connections.IDLE_S", 0.01)
    before = len(os.listdir("/proc/self/fd"))
    await reader_of(engine, server.port).read(0, 10)
    async with asyncio.timeout(10):
        while len(os.listdir("/proc/self/fd")) > before:
            await asyncio.sleep(0.01)


async def test_a_connection_that_is_not_to_be_kept_is_not(engine: TransferEngine, server: ScriptedServer) -> None:
    server.always = server.with_headers(Connection="close")
    reader = reader_of(engine, server.port)
    for _ in range(3):
        assert await reader.read(0, 10) == CONTENT[:10]
    assert server.connections == 3


async def test_a_drip_is_slow_but_content(engine: TransferEngine, server: ScriptedServer) -> None:
    server.always = server.dripping(2000, 0.01)
    assert await reader_of(engine, server.port).read(0, 60_000) == CONTENT[:60_000]
    assert len(server.requests) == 1


async def test_an_expired_target_is_replaced_once(engine: TransferEngine, server: ScriptedServer) -> None:
    made = 0

    async def target() -> HttpTarget:
        nonlocal made
        made += 1
        return HttpTarget("localhost", server.port, "127.0.0.1", None, f"/object?signature={made}")

    async def expiring(request: Request, writer: asyncio.StreamWriter) -> None:
        await (status(403) if request.path.endswith("=1") else server.honest)(request, writer)

    server.always = expiring
    info = ObjectInfo("object", len(CONTENT), version='"v1"')
    reader = HttpRangeReader(engine, info, target, patience=QUICK, sleep=Sleeps())
    reads = [reader.read(start, 1000) for start in range(0, 8000, 1000)]
    assert b"".join(await asyncio.gather(*reads)) == CONTENT[:8000]
    assert made == 2
    server.always = status(403)
    with pytest.raises(AccessDenied) as failure:
        await reader.read(0, 10)
    assert made == 3
    assert "signature" not in str(failure.value)


# ------------------------------------------------------------------------------------------------------ streams


async def read_stream(stream: HttpByteStream) -> bytes:
    collected = bytearray()
    async for piece in stream:
        collected += piece
    return bytes(collected)


def stream_of(engine: TransferEngine, port: int, *, version: str | None = '"v1"', size: int | None) -> HttpByteStream:
    info = ObjectInfo("object", size, version=version, ranges=False)
    return HttpByteStream(engine, info, at(port), patience=QUICK, sleep=Sleeps())


async def test_a_stream_goes_on_after_a_break_without_repeating(engine: TransferEngine, server: ScriptedServer) -> None:
    server.script.extend([server.breaking_off(3 * PIECE + 5), status(503), server.breaking_off(5 * PIECE)])
    assert await read_stream(stream_of(engine, server.port, size=len(CONTENT))) == CONTENT
    assert len(server.requests) == 4


async def test_a_stream_without_a_version_cannot_go_on(engine: TransferEngine, server: ScriptedServer) -> None:
    server.script.append(server.breaking_off(3 * PIECE))
    with pytest.raises(Unavailable):
        await read_stream(stream_of(engine, server.port, version=None, size=len(CONTENT)))
    assert len(server.requests) == 1


async def test_a_stream_that_changed_meanwhile_is_refused(engine: TransferEngine, server: ScriptedServer) -> None:
    server.script.extend([server.breaking_off(3 * PIECE), server.with_headers(ETag='"v2"')])
    with pytest.raises(ObjectChanged):
        await read_stream(stream_of(engine, server.port, size=len(CONTENT)))


@pytest.mark.parametrize("size", [None, len(CONTENT)])
async def test_chunked_and_unframed_bodies(engine: TransferEngine, server: ScriptedServer, size: int | None) -> None:
    async def chunked(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(CONTENT), 700_001):
            chunk = CONTENT[start : start + 700_001]
            writer.write(b"%x;ext=1\r\n%s\r\n" % (len(chunk), chunk))
            await writer.drain()
        writer.write(b"0\r\nTrailer: x\r\n\r\n")

    server.script.extend([chunked, raw(b"HTTP/1.1 200 OK\r\n\r\n" + CONTENT)])
    for _ in range(2):
        assert await read_stream(stream_of(engine, server.port, size=size)) == CONTENT


@pytest.mark.parametrize(
    "step",
    [
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello--0\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhello"),
    ],
    ids=["no last chunk", "no chunk end", "no chunk size", "short"],
)
async def test_a_body_cut_short_is_never_taken_for_whole(
    engine: TransferEngine, server: ScriptedServer, step: Step
) -> None:
    server.always = step
    with pytest.raises(Unavailable):
        await read_stream(stream_of(engine, server.port, size=None))


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1])
async def test_a_stream_of_another_size_is_an_integrity_error(
    engine: TransferEngine, server: ScriptedServer, size: int
) -> None:
    with pytest.raises(IntegrityError):
        await read_stream(stream_of(engine, server.port, size=size))
