"""PUTs over real sockets to servers that answer early, late, never, or hang up."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from stores.contract import MiB
from stores.errors import IntegrityError, StorageError, TlsFailed, Unavailable
from stores.transfer.engine import TransferEngine
from stores.transfer.put import FileRange, PutAnswer, Putter, Reread, Views
from stores.transfer.scratch import Scratch
from stores.transfer.slices import Slice
from stores.transfer.source import SourceFile
from stores.transfer.target import HttpPatience, HttpTarget
from stores.transfer.wire import Connection, ConnectionFailed
from tests.servers import Certificates

QUICK = HttpPatience(connect_timeout_s=5, read_timeout_s=0.3, attempts=3)
OK = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n'

Step = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Each request takes the next step; the last step stays."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.bodies: list[str] = []
        self.heads: list[bytes] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
                await step(head, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            writer.close()

    async def take(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        digest = hashlib.sha256()
        while length:
            some = await reader.read(min(length, MiB))
            if not some:
                raise asyncio.IncompleteReadError(b"", length)
            digest.update(some)
            length -= len(some)
        self.bodies.append(digest.hexdigest())
        writer.write(OK)

    async def take_and_hang_up(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.take(head, reader, writer)
        await writer.drain()
        writer.close()


def saying(data: bytes) -> Step:
    """Answers before the body is read, and closes."""

    async def step(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    return step


async def silent(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes nothing and says nothing."""
    await asyncio.Event().wait()


@pytest.fixture
async def engine() -> AsyncIterator[TransferEngine]:
    engine = TransferEngine()
    before = set(os.listdir("/proc/self/fd"))
    yield engine
    engine.connections.close()
    assert set(os.listdir("/proc/self/fd")) <= before
    await engine.aclose()


@pytest.fixture
def source(tmp_path: Path) -> SourceFile:
    path = tmp_path / "source"
    path.write_bytes(random.Random(1).randbytes(12 * MiB + 5))
    return SourceFile(path)


@pytest.fixture
async def scratch(engine: TransferEngine, source: SourceFile) -> AsyncIterator[Scratch]:
    """A reader of the same bytes."""
    scratch = engine.scratch_file()
    await scratch.append(memoryview(source.path.read_bytes()))
    yield scratch
    await scratch.close()


class Running:
    """A server, and a putter towards it."""

    def __init__(self, engine: TransferEngine, server: Server, patience: HttpPatience) -> None:
        self.pauses: list[float] = []
        self.server = server
        self._engine = engine
        self._patience = patience
        self.port = 0
        self.tls: ssl.SSLContext | None = None

    async def target(self) -> HttpTarget:
        return HttpTarget("localhost", self.port, "127.0.0.1", self.tls, "/key", {"x-mark": "m"})

    async def put(self, body: FileRange | Views | Reread) -> PutAnswer:
        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)

        putter = Putter(self._engine, self._patience, sleep=sleep, spread=lambda: 0.5)
        return await putter.put(body, self.target, "key")


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
async def start(
    request: pytest.FixtureRequest, engine: TransferEngine, certificates: Certificates
) -> AsyncIterator[Callable[..., Awaitable[Running]]]:
    running: list[asyncio.Server] = []
    tasks: set[asyncio.Task[None]] = set()

    async def start(server: Server, patience: HttpPatience = QUICK) -> Running:
        found = Running(engine, server, patience)
        context = None
        if request.param:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates.cert, certificates.key)
            found.tls = ssl.create_default_context(cafile=certificates.ca_file)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            await server.serve(reader, writer)

        running.append(await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context, limit=64 * 1024))
        found.port = running[-1].sockets[0].getsockname()[1]
        return found

    yield start
    engine.connections.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for server in running:
        server.close()
        await server.wait_closed()


def sha(source: SourceFile, start: int, end: int) -> str:
    return hashlib.sha256(source.path.read_bytes()[start:end]).hexdigest()


async def sent(running: Running, source: SourceFile, start: int = 0, end: int | None = None) -> PutAnswer:
    source.open()
    try:
        return await running.put(FileRange(source, start, source.size if end is None else end))
    finally:
        source.close()


async def test_ranges_of_a_file_go_over_one_connection(
    start: Callable[..., Awaitable[Running]], source: SourceFile
) -> None:
    server = Server()
    server.steps = [server.take]
    running = await start(server)
    for begin, end in ((0, 5 * MiB), (5 * MiB, 12 * MiB + 5), (3, 4), (7, 7)):
        answer = await sent(running, source, begin, end)
        assert (answer.status, answer.tries, answer.answer.headers["etag"]) == (200, 1, '"e"')
        assert server.bodies[-1] == sha(source, begin, end)
    assert server.connections == 1
    assert server.heads[0].startswith(b"PUT /key HTTP/1.1\r\n")
    assert b"\r\nx-mark: m\r\n" in server.heads[0]


async def test_memory_is_sent_in_order(start: Callable[..., Awaitable[Running]]) -> None:
    data = random.Random(2).randbytes(3 * MiB + 1)
    server = Server()
    server.steps = [server.take]
    running = await start(server)
    view = memoryview(data)
    answer = await running.put(Views([view[: 2 * MiB], view[2 * MiB :]]))
    assert (answer.status, server.bodies) == (200, [hashlib.sha256(data).hexdigest()])


async def test_what_a_reader_reads_is_sent_in_order_and_read_again_for_every_attempt(
    start: Callable[..., Awaitable[Running]], source: SourceFile, scratch: Scratch, engine: TransferEngine
) -> None:
    server = Server()
    server.steps = [saying(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n"), server.take]
    running = await start(server)
    answer = await running.put(Reread(engine, Slice(scratch, 5, 12 * MiB + 4)))
    assert (answer.status, answer.tries) == (200, 2)
    assert server.bodies == [sha(source, 5, 12 * MiB + 4)]
    assert engine.buffers.taken == 0
    await running.put(Reread(engine, Slice(scratch, 7, 9)))
    assert server.bodies[1:] == [sha(source, 7, 9)]
    assert server.connections == 2


async def test_what_a_reader_reads_is_given_up_when_it_is_refused(
    start: Callable[..., Awaitable[Running]], scratch: Scratch, engine: TransferEngine
) -> None:
    running = await start(Server(saying(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")))
    answer = await running.put(Reread(engine, scratch))
    assert (answer.status, answer.content, answer.tries) == (403, b"no", 1)
    assert engine.buffers.taken == 0


@pytest.mark.parametrize("chunked", [False, True])
async def test_early_refusal_is_read_and_not_a_broken_pipe(
    start: Callable[..., Awaitable[Running]], source: SourceFile, chunked: bool
) -> None:
    body = b"<Error><Code>AccessDenied</Code></Error>"
    framing = (
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        if chunked
        else b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    running = await start(Server(saying(b"HTTP/1.1 403 Forbidden\r\n" + framing)))
    answer = await sent(running, source)
    assert (answer.status, answer.content, running.pauses) == (403, body, [])


async def test_busy_server_is_asked_again_when_it_says(
    start: Callable[..., Awaitable[Running]], source: SourceFile
) -> None:
    server = Server(saying(b"HTTP/1.1 503 Slow Down\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"))
    server.steps.append(server.take)
    running = await start(server)
    answer = await sent(running, source)
    assert (answer.status, answer.tries, running.pauses) == (200, 2, [7.0])
    assert server.bodies == [sha(source, 0, 12 * MiB + 5)]


async def test_last_answer_of_a_failing_server_is_given(
    start: Callable[..., Awaitable[Running]], source: SourceFile
) -> None:
    running = await start(Server(saying(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops")))
    answer = await sent(running, source)
    assert (answer.status, answer.content, answer.tries, len(running.pauses)) == (500, b"oops", 3, 2)


async def test_connection_that_was_closed_meanwhile_costs_no_attempt(
    start: Callable[..., Awaitable[Running]], source: SourceFile
) -> None:
    server = Server()
    server.steps = [server.take_and_hang_up]
    running = await start(server)
    for _ in range(3):
        assert (await sent(running, source, 0, 1000)).status == 200
    assert running.pauses == []
    assert server.bodies == [sha(source, 0, 1000)] * 3


async def test_server_that_never_answers_ends_by_time(
    start: Callable[..., Awaitable[Running]], source: SourceFile
) -> None:
    running = await start(Server(silent), HttpPatience(read_timeout_s=0.3, attempts=1))
    for begin, end in ((0, 12 * MiB), (0, 10)):  # it does not take it all, and takes it all and says nothing
        with pytest.raises(Unavailable) as failed:
            await sent(running, source, begin, end)
        assert "nothing for 0.3 s" in failed.value.message or "timed out" in failed.value.message
        assert failed.value.details["tries"] == 1


async def test_cancelled_put_ends_at_once_and_keeps_no_connection(
    start: Callable[..., Awaitable[Running]], source: SourceFile, engine: TransferEngine
) -> None:
    server = Server(silent)
    running = await start(server, HttpPatience(read_timeout_s=60))
    task = asyncio.create_task(sent(running, source))
    while not server.heads:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.buffers.taken == 0
    server.steps = [server.take]
    assert (await sent(running, source)).status == 200
    assert server.connections == 2


async def test_file_that_ends_early_is_not_taken_for_whole(
    start: Callable[..., Awaitable[Running]], source: SourceFile
) -> None:
    server = Server()
    server.steps = [server.take]
    running = await start(server)
    source.open()
    os.truncate(source.path, 6 * MiB)
    with pytest.raises(IntegrityError, match="must not be changed"):
        await running.put(FileRange(source, 0, source.size))
    assert server.bodies == []
    source.close()
    assert (await sent(running, source, 0, 10)).status == 200
    assert server.connections == 2


async def test_rubbish_for_an_answer_is_unavailable(
    start: Callable[..., Awaitable[Running]], source: SourceFile
) -> None:
    running = await start(Server(saying(b"SSH-2.0-OpenSSH\r\n\r\n")))
    with pytest.raises(Unavailable, match="writing key on localhost broke off"):
        await sent(running, source)


async def test_nobody_there_is_unavailable_after_all_attempts(engine: TransferEngine) -> None:
    running = Running(engine, Server(silent), QUICK)
    running.port = 1
    with pytest.raises(Unavailable, match="cannot connect"):
        await running.put(Views([memoryview(b"x")]))
    assert len(running.pauses) == 2


async def test_untrusted_server_gets_nothing(
    start: Callable[..., Awaitable[Running]], source: SourceFile, request: pytest.FixtureRequest
) -> None:
    server = Server()
    server.steps = [server.take]
    running = await start(server)
    if running.tls is None:
        return
    running.tls = ssl.create_default_context()
    with pytest.raises(TlsFailed, match="CA file"):
        await sent(running, source)
    assert server.heads == []


@pytest.mark.parametrize("path", ["missing", "."])
def test_what_is_no_file_is_no_source(tmp_path: Path, path: str) -> None:
    source = SourceFile(tmp_path / path)
    with pytest.raises(StorageError):
        source.open()
    source.close()


def test_runs_of_data_are_found(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(10 * MiB)
        file.seek(4 * MiB)
        file.write(b"x" * 4096)
    source = SourceFile(path)
    source.open()
    try:
        assert list(source.data(0, 10 * MiB)) == [(4 * MiB, 4 * MiB + 4096)]
        assert list(source.data(4 * MiB + 1, 4 * MiB + 7)) == [(4 * MiB + 1, 4 * MiB + 7)]
        assert list(source.data(5 * MiB, 10 * MiB)) == []
        assert list(source.data(0, 0)) == []
    finally:
        source.close()


def test_what_an_aborted_connection_has_not_sent_is_dropped() -> None:
    """The other side hears of it at once, and gets nothing more, however slowly it reads."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        other, _ = server.accept()
        connection = Connection(client, tls=None, host="localhost", read_timeout_s=0.2)
        with other:
            with pytest.raises(ConnectionFailed):
                connection.send(memoryview(bytes(64 * MiB)))
            connection.abort()
            connection.close()
            connection.close()
            with pytest.raises(ConnectionResetError):
                _read_all(other)


def _read_all(sock: socket.socket) -> None:
    while sock.recv(MiB):
        pass
