"""S3 servers that lie, in a few lines of aiohttp: nothing is called stored that they did not prove to have."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from stores.backends.s3_notes import marker_key
from stores.contract import MiB, ObjectInfo
from stores.errors import IntegrityError, Unavailable
from stores.transfer.engine import TransferEngine
from tests.flows.s3.stores import opened
from tests.objects import read_all, send
from tests.servers import S3Server


def listing(keys: list[str], following: str | None = None) -> str:
    """A page of ListObjectsV2."""
    entries = "".join(
        f"<Contents><Key>{key}</Key><Size>3</Size><ETag>&quot;e&quot;</ETag>"
        "<LastModified>1994-11-06T08:49:37.000Z</LastModified></Contents>"
        for key in keys
    )
    more = f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
    truncated = "true" if following else "false"
    return f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{more}{entries}</ListBucketResult>"


class Pretender:
    """An S3 server of a few lines, which keeps what it is sent and can be told to lie about it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.deleted: list[str] = []
        self.requests: list[str] = []
        self.echo: Callable[[str], str | None] = lambda crc: None
        self.corrupt = False
        self.opaque_etag = False
        self.fail_heads = False
        self.fail: list[int] = []  # statuses to answer instead, one for each coming request
        self.page: Callable[[str], str] = lambda token: listing([])
        self.lose_answers = 0  # so many PUTs are carried out, and then answered 500

    async def handle(self, request: web.Request) -> web.StreamResponse:
        key = request.path.removeprefix("/bucket/")
        body = await request.read()
        self.requests.append(request.method)
        if self.fail:
            status = self.fail.pop(0)
            return web.Response(status=status, text=f"<Error><Code>S{status}</Code></Error>")
        if self.fail_heads and request.method == "HEAD":
            return web.Response(status=503)
        if "list-type" in request.query:
            return web.Response(text=self.page(request.query.get("continuation-token", "")), content_type="text/xml")
        if request.method == "PUT":
            if "If-None-Match" in request.headers and key in self.objects:
                return web.Response(status=412, text="<Error><Code>PreconditionFailed</Code></Error>")
            self.objects[key] = body[:-1] + b"!" if self.corrupt else body
            digest = hashlib.md5(self.objects[key]).hexdigest()
            self.etags[key] = '"opaque"' if self.opaque_etag else f'"{digest}"'
            if self.lose_answers:
                self.lose_answers -= 1
                return web.Response(status=500, text="<Error><Code>InternalError</Code></Error>")
            echoed = self.echo(request.headers.get("x-amz-checksum-crc64nvme", ""))
            headers = {"ETag": self.etags[key]}
            return web.Response(headers=headers | ({"x-amz-checksum-crc64nvme": echoed} if echoed else {}))
        if request.method == "DELETE":
            self.deleted.append(key)
            self.objects.pop(key, None)
            return web.Response(status=204)
        if key not in self.objects:
            return web.Response(status=404)
        headers = {"ETag": self.etags[key], "Last-Modified": "Sun, 06 Nov 1994 08:49:37 GMT"}
        return web.Response(headers=headers, body=self.objects[key])


@pytest.fixture
async def pretender() -> AsyncIterator[tuple[Pretender, S3Server]]:
    pretender = Pretender()
    application = web.Application(client_max_size=64 * MiB)
    application.router.add_route("*", "/{path:.*}", pretender.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield pretender, S3Server(f"http://127.0.0.1:{port}", None, None, "key", "secret")
    await runner.cleanup()


async def test_damaged_note_is_reported(seaweed: S3Server, bucket: str, engine: TransferEngine) -> None:
    client = seaweed.client()
    for body in (b"", b"[]", b"{}", b'"text"', b"\xff"):
        client.put_object(Bucket=bucket, Key=marker_key("object", "t"), Body=body)
        async with opened(engine, seaweed, bucket) as store:
            with pytest.raises(IntegrityError):
                await store.discard("object", token="t")


async def test_proven_object_is_stored_although_nobody_answers_afterwards(
    pretender: tuple[Pretender, S3Server], engine: TransferEngine
) -> None:
    lies, server = pretender
    lies.fail_heads = True
    async with opened(engine, server, "bucket", maxErrorRetry=0) as store:
        info = await send(store, "object", b"content", replace=True)
    assert (info.size, info.version) == (7, f'"{hashlib.md5(b"content").hexdigest()}"')
    lies.opaque_etag = True
    async with opened(engine, server, "bucket", maxErrorRetry=0) as store:
        with pytest.raises(Unavailable):
            await send(store, "object", b"content", replace=True)


@pytest.mark.parametrize("echo", [lambda crc: crc, lambda crc: None])
async def test_agreeing_checksum_or_md5_is_believed(
    pretender: tuple[Pretender, S3Server], engine: TransferEngine, echo: Callable[[str], str | None]
) -> None:
    lies, server = pretender
    lies.echo = echo
    lies.opaque_etag = echo("x") is not None
    async with opened(engine, server, "bucket") as store:
        assert (await send(store, "object", b"content")).size == 7
    assert lies.objects == {"object": b"content"}


@pytest.mark.parametrize(
    ("echo", "corrupt", "opaque"),
    [
        (lambda crc: "AAAAAAAAAAA=", False, False),  # knows of another checksum than ours
        (lambda crc: None, True, False),  # stored something else, and its ETag shows it
        (lambda crc: None, False, True),  # accepted the checksum and says nothing: no proof
    ],
)
async def test_unconfirmed_object_is_not_called_stored(
    pretender: tuple[Pretender, S3Server],
    engine: TransferEngine,
    echo: Callable[[str], str | None],
    corrupt: bool,
    opaque: bool,
) -> None:
    lies, server = pretender
    lies.echo, lies.corrupt, lies.opaque_etag = echo, corrupt, opaque
    async with opened(engine, server, "bucket") as store:
        with pytest.raises(IntegrityError):
            await send(store, "object", b"content")
    assert lies.objects == {}
    assert lies.deleted == ["object"]


async def test_without_keys_objects_are_sent_unsigned(
    pretender: tuple[Pretender, S3Server], engine: TransferEngine
) -> None:
    lies, server = pretender
    async with opened(engine, server, "bucket", accessKey=None, secretKey=None) as store:
        assert (await send(store, "object", b"content")).size == 7
    assert lies.objects == {"object": b"content"}


async def test_lost_answer_to_a_put_is_not_mistaken_for_another_writer(
    pretender: tuple[Pretender, S3Server], engine: TransferEngine
) -> None:
    lies, server = pretender
    lies.lose_answers = 1
    async with opened(engine, server, "bucket", maxErrorRetry=1) as store:
        assert (await send(store, "object", b"content")).size == 7
    assert lies.objects == {"object": b"content"}


async def test_all_pages_are_listed_in_order_without_what_is_no_ref(
    pretender: tuple[Pretender, S3Server], engine: TransferEngine
) -> None:
    lies, server = pretender
    pages = {
        "": listing(["b", "folder/", "/absolute", "a//b"], "one"),
        "one": listing([], "two"),
        "two": listing(["a", "../c"]),
    }
    lies.page = pages.__getitem__
    async with opened(engine, server, "bucket") as store:
        assert [info.ref async for info in store.list()] == ["a", "b"]
        assert (await store.usage()).used == 6 * 3


async def test_listing_that_does_not_go_on_is_given_up(
    pretender: tuple[Pretender, S3Server], engine: TransferEngine
) -> None:
    lies, server = pretender
    lies.page = lambda token: listing(["a"], "same")
    async with opened(engine, server, "bucket") as store:
        with pytest.raises(Unavailable):
            await anext(store.list())


async def test_rubbish_for_an_answer_is_unavailable(
    pretender: tuple[Pretender, S3Server], engine: TransferEngine
) -> None:
    lies, server = pretender
    lies.page = lambda token: "<html>Welcome to the captive portal"
    async with opened(engine, server, "bucket", maxErrorRetry=0) as store:
        with pytest.raises(Unavailable):
            await anext(store.list())


@pytest.mark.parametrize(
    ("fields", "host", "path"),
    [
        ({"pathStyle": False}, "bucket.s3.example", "/object"),
        ({}, "s3.example", "/bucket/object"),
        ({"endPoint": "base"}, "s3.example", "/base/path/bucket/object"),
    ],
)
async def test_addressing_of_the_bytes(
    pretender: tuple[Pretender, S3Server], engine: TransferEngine, fields: dict[str, Any], host: str, path: str
) -> None:
    lies, server = pretender
    port = server.port
    lies.objects[path.removeprefix("/bucket/")], lies.etags[path.removeprefix("/bucket/")] = b"content", '"e"'

    async def resolve(asked: str, at: int) -> tuple[str, ...]:
        assert (asked, at) == (host, port)
        return ("127.0.0.1",)

    base = "/base/path" if "endPoint" in fields else ""
    given = {**fields, "endPoint": f"http://s3.example:{port}{base}"}
    async with opened(engine, server, "bucket", resolve=resolve, **given) as store:
        assert await read_all(store, ObjectInfo("object", 7, '"e"')) == b"content"


async def test_storm_of_errors_is_weathered_or_reported(
    pretender: tuple[Pretender, S3Server], engine: TransferEngine
) -> None:
    lies, server = pretender
    lies.objects["object"], lies.etags["object"] = b"content", '"e"'
    async with opened(engine, server, "bucket", maxErrorRetry=2) as store:
        lies.fail = [500, 503]
        assert (await store.stat("object")).size == 7
        lies.requests.clear()
        lies.fail = [503] * 3
        with pytest.raises(Unavailable) as failed:
            await store.stat("object")
        assert (len(lies.requests), failed.value.details["tries"]) == (3, 3)
