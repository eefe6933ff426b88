"""Web servers that fail, lie or lead astray: nginx and a fault proxy for what is real, a few lines of aiohttp for lies."""

from __future__ import annotations

import asyncio
import gzip
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest
from aiohttp import web

from stores.backends.connecting import Resolve, system_resolve
from stores.backends.http import HttpStore
from stores.contract import HttpUrl, Kind, MiB, ObjectInfo, RangeReader
from stores.errors import (
    AccessDenied,
    IntegrityError,
    InvalidReference,
    NotFound,
    ObjectChanged,
    PolicyRefused,
    StoreError,
    StoreUnsupported,
    TlsFailed,
    Unavailable,
)
from stores.settings import StoreSettings, UrlSettings
from stores.transfer.engine import TransferEngine
from tests.doubles.fault_proxy import FaultProxy
from tests.objects import content, read_all, sha
from tests.servers import NginxServer

LOOPBACK = UrlSettings(allow_http=True, ports=(), allow_networks=(ip_network("127.0.0.0/8"),))
QUICK = StoreSettings(urls=LOOPBACK, connect_timeout=5, read_timeout=5, attempts=5)


@asynccontextmanager
async def opened(
    engine: TransferEngine, url: str, settings: StoreSettings = QUICK, resolve: Resolve = system_resolve
) -> AsyncIterator[HttpStore]:
    store = HttpStore(url, settings, engine, resolve=resolve)
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
def put(nginx: NginxServer) -> Callable[[bytes], str]:
    """Puts a new file before nginx, and gives its name."""

    def put(data: bytes) -> str:
        name = uuid.uuid4().hex
        (nginx.root / name).write_bytes(data)
        return name

    return put


# ------------------------------------------------------------------------------------------------------ real servers


async def test_server_without_ranges_is_read_as_a_stream(
    nginx: NginxServer, engine: TransferEngine, put: Callable[[bytes], str]
) -> None:
    data = content(5 * MiB + 3)
    name = put(data)
    async with opened(engine, nginx.url("norange")) as store:
        info = await store.stat(name)
        assert (info.size, info.ranges) == (len(data), False)
        assert store.offers(info) == {Kind.BYTE_STREAM}
        assert sha(await read_all(store, info)) == sha(data)
        with pytest.raises(StoreUnsupported):
            async with store.present(info, Kind.RANGE_READER):
                pass


@pytest.mark.parametrize("location", ["flaky503", "flakydrop"])
async def test_flaky_server_is_read_to_the_end(
    nginx: NginxServer, engine: TransferEngine, put: Callable[[bytes], str], location: str
) -> None:
    data = content(3 * MiB)
    name = put(data)
    patient = StoreSettings(urls=LOOPBACK, attempts=12)
    async with opened(engine, nginx.url("")) as steady, opened(engine, nginx.url(location), patient) as store:
        info = await steady.stat(name)
        failures = 0
        for _ in range(30):
            try:
                found = await store.stat(name)
            except Unavailable:
                failures += 1
            else:
                assert found == info
        assert failures < 30
        async with store.present(info, Kind.RANGE_READER) as reader:
            assert isinstance(reader, RangeReader)
            for start in range(0, len(data), MiB // 4):
                assert await reader.read(start, MiB // 4) == data[start : start + MiB // 4]


async def test_broken_connections_are_resumed_at_the_byte(
    nginx: NginxServer, engine: TransferEngine, put: Callable[[bytes], str]
) -> None:
    data = content(6 * MiB)
    name = put(data)
    async with FaultProxy(nginx.port) as proxy, opened(engine, f"http://127.0.0.1:{proxy.port}/") as store:
        info = await store.stat(name)
        proxy.cut_after, proxy.cut_times = 700_000, 5
        assert sha(await read_all(store, info)) == sha(data)
        assert proxy.cut_times == 0
        assert proxy.bytes_down < 2 * len(data)


async def test_silent_server_is_given_up(
    nginx: NginxServer, engine: TransferEngine, put: Callable[[bytes], str]
) -> None:
    name = put(content(2 * MiB))
    patient = StoreSettings(urls=LOOPBACK, connect_timeout=2, read_timeout=0.3, attempts=2)
    async with FaultProxy(nginx.port) as proxy, opened(engine, f"http://127.0.0.1:{proxy.port}/", patient) as store:
        info = await store.stat(name)
        proxy.stall_after = 1000
        with pytest.raises(Unavailable):
            await read_all(store, info)
        proxy.stall_after = 0
        with pytest.raises(Unavailable):
            await store.stat(name)


async def test_protected_object_is_denied(
    nginx: NginxServer, engine: TransferEngine, put: Callable[[bytes], str]
) -> None:
    async with opened(engine, nginx.url("auth")) as store:
        with pytest.raises(AccessDenied):
            await store.stat(put(b"secret"))


async def test_changed_object_is_noticed_in_mid_transfer(
    nginx: NginxServer, engine: TransferEngine, put: Callable[[bytes], str]
) -> None:
    name = put(content(2 * MiB))
    async with opened(engine, nginx.url("")) as store:
        info = await store.stat(name)
        async with store.present(info, Kind.RANGE_READER) as reader:
            assert isinstance(reader, RangeReader)
            await reader.read(0, MiB)
            replacement = nginx.root / uuid.uuid4().hex
            replacement.write_bytes(content(2 * MiB, 2))
            os.utime(replacement, (1_600_000_000, 1_600_000_000))
            replacement.rename(nginx.root / name)
            with pytest.raises(ObjectChanged):
                await reader.read(MiB, MiB)
        with pytest.raises(ObjectChanged):
            await read_all(store, info)


async def test_unknown_authority_is_a_tls_failure(
    nginx: NginxServer, engine: TransferEngine, put: Callable[[bytes], str]
) -> None:
    name = put(b"x")
    async with opened(engine, nginx.url("", tls=True)) as store:
        with pytest.raises(TlsFailed, match="ca_file"):
            await store.stat(name)
    trusting = StoreSettings(urls=LOOPBACK, ca_file=nginx.ca_file)

    async def resolve(host: str, port: int) -> tuple[str, ...]:
        return ("127.0.0.1",)

    async with opened(engine, f"https://other.example:{nginx.tls_port}/", trusting, resolve) as store:
        with pytest.raises(TlsFailed, match=r"other\.example"):
            await store.stat(name)
    async with opened(engine, f"https://localhost:{nginx.tls_port}/", trusting, resolve) as store:
        assert await read_all(store, await store.stat(name)) == b"x"


async def test_nobody_there_is_unavailable(engine: TransferEngine) -> None:
    for url in ("http://127.0.0.1:1/", "http://name.invalid/"):
        async with opened(engine, url) as store:
            with pytest.raises(Unavailable):
                await store.stat("object")


async def test_second_address_is_tried_when_the_first_is_dead(
    nginx: NginxServer, engine: TransferEngine, put: Callable[[bytes], str]
) -> None:
    async def resolve(host: str, port: int) -> tuple[str, ...]:
        return "127.0.0.2", "127.0.0.1"

    async with opened(engine, f"http://mirror.example:{nginx.port}/", resolve=resolve) as store:
        assert await read_all(store, await store.stat(put(b"alive"))) == b"alive"


# ------------------------------------------------------------------------------------------------------- redirects


async def test_redirects_are_followed_within_the_limit(
    nginx: NginxServer, engine: TransferEngine, put: Callable[[bytes], str]
) -> None:
    data = content(MiB)
    name = put(data)
    async with opened(engine, nginx.url("redir")) as store:
        assert sha(await read_all(store, await store.stat(name))) == sha(data)
    five = "redir/" * 5
    async with opened(engine, nginx.url(five)) as store:
        assert (await store.stat(name)).size == MiB
    async with opened(engine, nginx.url(five + "redir/")) as store:
        with pytest.raises(PolicyRefused, match="redirects"):
            await store.stat(name)
    async with opened(engine, nginx.url("loop")) as store:
        with pytest.raises(PolicyRefused, match="redirects"):
            await store.stat(name)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    "location",
    [
        "http://10.0.0.1/x",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/x",
        "http://private.example/x",
        "http://2130706433/x",
        "http://user:hunter2@127.0.0.1/x",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
    ],
)
async def test_redirect_to_where_the_policy_forbids_is_refused(engine: TransferEngine, location: str) -> None:
    reached = []

    async def redirect(request: web.Request) -> web.StreamResponse:
        reached.append(request.path)
        return web.Response(status=302, headers={"Location": location})

    async def resolve(host: str, port: int) -> tuple[str, ...]:
        return ("192.168.7.7",) if host == "private.example" else (host,)

    async with serving(redirect) as port, opened(engine, f"http://127.0.0.1:{port}/", resolve=resolve) as store:
        with pytest.raises((PolicyRefused, InvalidReference)) as refused:
            await store.stat("object")
        assert "hunter2" not in str(refused.value)
    assert reached == ["/object"]


async def test_name_that_resolves_to_a_private_address_is_refused_before_connecting(engine: TransferEngine) -> None:
    reached = []

    async def answer(request: web.Request) -> web.StreamResponse:
        reached.append(request.path)
        return web.Response(body=b"secret")

    async def resolve(host: str, port: int) -> tuple[str, ...]:
        return "127.0.0.1", "::1", "::ffff:127.0.0.1"

    public_only = StoreSettings(urls=UrlSettings(allow_http=True, ports=()))
    async with serving(answer) as port:
        for url in (f"http://innocent.example:{port}/", f"http://127.0.0.1:{port}/", f"http://localhost:{port}/"):
            async with opened(engine, url, public_only, resolve) as store:
                with pytest.raises(PolicyRefused):
                    await store.stat("object")
    assert reached == []


async def test_name_that_changes_its_address_is_checked_each_time(engine: TransferEngine) -> None:
    """DNS rebinding: the address that was checked is the one connected to, and another one is checked again."""
    answers = iter([("127.0.0.1",), ("127.0.0.1",), ("10.0.0.1",)])

    async def resolve(host: str, port: int) -> tuple[str, ...]:
        return next(answers)

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"content", headers={"ETag": '"e"'})

    async with serving(answer) as port, opened(engine, f"http://name.example:{port}/", resolve=resolve) as store:
        info = await store.stat("object")
        assert await read_all(store, info) == b"content"
        with pytest.raises(PolicyRefused):
            await store.stat("object")


async def test_hosts_are_told_their_own_name_only(engine: TransferEngine) -> None:
    seen: list[tuple[str, set[str]]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append((request.host, set(request.headers)))
        if request.host.startswith("first"):
            location = f"http://second.example:{request.url.port}/elsewhere?token=1"
            return web.Response(status=307, headers={"Location": location, "Set-Cookie": "id=1"})
        return web.Response(body=b"content")

    async def resolve(host: str, port: int) -> tuple[str, ...]:
        return ("127.0.0.1",)

    async with serving(answer) as port, opened(engine, f"http://first.example:{port}/", resolve=resolve) as store:
        assert await read_all(store, await store.stat("object")) == b"content"
        assert {host for host, _ in seen} == {f"first.example:{port}", f"second.example:{port}"}
    for _, names in seen:
        assert not names & {"Cookie", "Authorization", "Referer"}


# ---------------------------------------------------------------------------------------------------- lying servers


def first_byte(size: int, **headers: str) -> web.Response:
    return web.Response(status=206, body=b"x", headers={"Content-Range": f"bytes 0-0/{size}", **headers})


@pytest.mark.parametrize(
    "content_range", ["", "bytes 0-0/*", "bytes 5-5/100", "bytes 0-1/100", "items 0-0/5", "bytes 0-0/-1"]
)
async def test_ranges_that_are_not_what_was_asked_for_are_refused(engine: TransferEngine, content_range: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=206, body=b"x", headers={"Content-Range": content_range} if content_range else {})

    async with serving(answer) as port, opened(engine, f"http://127.0.0.1:{port}/") as store:
        with pytest.raises(StoreError):
            await store.stat("object")


async def test_claimed_ranges_are_not_believed(engine: TransferEngine) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"content", headers={"Accept-Ranges": "bytes"})

    async with serving(answer) as port, opened(engine, f"http://127.0.0.1:{port}/") as store:
        info = await store.stat("object")
        assert (info.size, info.ranges, info.version) == (7, False, None)
        assert await read_all(store, info) == b"content"


async def test_unknown_size_is_told_as_such(engine: TransferEngine) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for _ in range(5):
            await response.write(b"chunk")
        await response.write_eof()
        return response

    async with serving(answer) as port, opened(engine, f"http://127.0.0.1:{port}/") as store:
        info = await store.stat("object")
        assert (info.size, info.ranges) == (None, False)
        assert await read_all(store, info) == b"chunk" * 5


async def test_wrong_length_is_noticed(engine: TransferEngine) -> None:
    """The first answer says 1000 bytes; the object then has 10."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Range") == "bytes=0-0":
            return first_byte(1000, ETag='"e"')
        return web.Response(status=206, body=b"x" * 10, headers={"Content-Range": "bytes 0-9/10", "ETag": '"e"'})

    async with serving(answer) as port, opened(engine, f"http://127.0.0.1:{port}/") as store:
        info = await store.stat("object")
        with pytest.raises((IntegrityError, ObjectChanged)):
            await read_all(store, info)


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
async def test_without_strong_etag_the_date_guards(engine: TransferEngine, etag: str | None) -> None:
    conditions = []
    headers = {"Last-Modified": "Sun, 06 Nov 1994 08:49:37 GMT"} | ({"ETag": etag} if etag else {})

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Range") == "bytes=0-0":
            return first_byte(100, **headers)
        conditions.append((request.headers.get("If-Match"), request.headers.get("If-Unmodified-Since")))
        return web.Response(status=412)

    async with serving(answer) as port, opened(engine, f"http://127.0.0.1:{port}/") as store:
        info = await store.stat("object")
        assert info.version == (etag or "Sun, 06 Nov 1994 08:49:37 GMT; 100")
        assert info.modified == 784111777.0
        with pytest.raises(ObjectChanged):
            await read_all(store, info)
    assert set(conditions) == {(None, "Sun, 06 Nov 1994 08:49:37 GMT")}


async def test_content_is_not_decoded(engine: TransferEngine) -> None:
    packed = gzip.compress(b"content" * 100)

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    async with serving(answer) as port, opened(engine, f"http://127.0.0.1:{port}/") as store:
        assert await read_all(store, await store.stat("object.gz")) == packed


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotFound), (410, NotFound), (401, AccessDenied), (403, AccessDenied), (429, Unavailable), (500, Unavailable),
     (503, Unavailable), (302, Unavailable), (418, StoreError), (400, StoreError)],
)  # fmt: skip
async def test_statuses(engine: TransferEngine, status: int, kind: type[StoreError]) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    async with serving(answer) as port, opened(engine, f"http://127.0.0.1:{port}/") as store:
        with pytest.raises(StoreError) as failed:
            await store.stat("object")
        assert type(failed.value) is kind


async def test_token_in_a_redirect_is_not_shown(engine: TransferEngine) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if "sig" not in request.query:
            return web.Response(status=302, headers={"Location": "/signed?sig=hunter2"})
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with serving(answer) as port, opened(engine, f"http://127.0.0.1:{port}/") as store:
        with pytest.raises(Unavailable) as failed:
            await store.stat("object")
    error = failed.value
    assert "hunter2" not in f"{error!r} {error.details} {error.__cause__!r}"
    assert error.__suppress_context__


# ---------------------------------------------------------------------------------------------- handing out the URL


async def test_url_is_handed_out_only_where_allowed(
    nginx: NginxServer, engine: TransferEngine, put: Callable[[bytes], str]
) -> None:
    name = put(b"content")
    async with opened(engine, nginx.url("redir")) as store:
        assert Kind.HTTP_URL not in store.offers() | store.offers(await store.stat(name))
    urls = UrlSettings(allow_http=True, ports=(), allow_networks=LOOPBACK.allow_networks, external_fetch=True)
    async with opened(engine, nginx.url("redir"), StoreSettings(urls=urls)) as store:
        info = await store.stat(name)
        assert Kind.HTTP_URL in store.offers(info)
        async with store.present(info, Kind.HTTP_URL) as presented:
            assert isinstance(presented, HttpUrl)
            assert presented.url == nginx.url(name)
        assert Kind.HTTP_URL not in store.offers(ObjectInfo(name, 7, ranges=False))


async def test_url_with_a_token_is_not_handed_out(engine: TransferEngine) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if "sig" not in request.query:
            return web.Response(status=302, headers={"Location": "/signed?sig=hunter2"})
        return first_byte(100)

    urls = UrlSettings(allow_http=True, ports=(), allow_networks=LOOPBACK.allow_networks, external_fetch=True)
    async with (
        serving(answer) as port,
        opened(engine, f"http://127.0.0.1:{port}/", StoreSettings(urls=urls)) as store,
        store.present(await store.stat("object"), Kind.HTTP_URL) as presented,
    ):
        assert isinstance(presented, HttpUrl)
        assert presented.url == f"http://127.0.0.1:{port}/object"


@pytest.mark.parametrize("url", ["http://host/x?token=1", "https://user:pw@host/", "file:///x", "http://127.1/", ""])
def test_hostile_base_is_refused_at_once(url: str) -> None:
    with pytest.raises((InvalidReference, PolicyRefused)):
        HttpStore(url, QUICK, TransferEngine())


async def test_cancelled_calls_leave_no_tasks(nginx: NginxServer, engine: TransferEngine) -> None:
    async with FaultProxy(nginx.port) as proxy, opened(engine, f"http://127.0.0.1:{proxy.port}/") as store:
        proxy.stall_after = 0
        before = asyncio.all_tasks()
        task = asyncio.create_task(store.stat("object"))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        proxies = {other for other in asyncio.all_tasks() - before if "FaultProxy" in repr(other)}
        assert asyncio.all_tasks() - before <= proxies
