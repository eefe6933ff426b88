"""S3 when things go wrong: credentials, buckets, broken connections, lost answers, lying servers, expired signatures.

Servers are real, except where the fault is a server that lies: those are a few lines of aiohttp.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from stores.backends.connecting import Resolve, system_resolve, trusting_context
from stores.backends.s3 import S3Store
from stores.backends.s3_notes import marker_key
from stores.backends.s3_sums import SMALLEST_PART
from stores.contract import ByteStream, Kind, MiB, ObjectInfo, PendingStream, RangeReader
from stores.errors import (
    AccessDenied,
    AlreadyExists,
    IntegrityError,
    NotFound,
    ObjectChanged,
    StorageError,
    TlsFailed,
    Unavailable,
)
from stores.secret import Secret
from stores.settings import StoreSettings
from stores.to import S3TO
from stores.transfer.engine import TransferEngine
from tests.buckets import empty, keys, made_bucket, uploads
from tests.doubles.fault_proxy import FaultProxy
from tests.servers import S3Server

QUICK = StoreSettings(connect_timeout=5, read_timeout=5, attempts=3)


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def sha(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def made(seaweed: S3Server) -> Iterator[tuple[Any, str]]:
    with made_bucket(seaweed) as made:
        yield made


@pytest.fixture
def bucket(made: tuple[Any, str]) -> Iterator[str]:
    """Empty at the start of each test."""
    yield made[1]
    empty(*made)


@asynccontextmanager
async def opened(
    engine: TransferEngine,
    server: S3Server,
    bucket: str,
    *,
    settings: StoreSettings = QUICK,
    presign_s: int = 900,
    resolve: Resolve = system_resolve,
    **fields: Any,
) -> AsyncIterator[S3Store]:
    to = S3TO(
        **{
            "endPoint": server.endpoint,
            "accessKey": server.access_key,
            "secretKey": Secret(server.secret_key),
            "bucketName": bucket,
            **fields,
        }
    )
    store = S3Store(to, settings, engine, presign_s=presign_s, resolve=resolve)
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def sending(
    store: S3Store, ref: str, *, token: str = "t", size: int | None = None, replace: bool = False
) -> AsyncIterator[PendingStream]:
    async with store.write(ref, Kind.BYTE_STREAM, token=token, size=size, replace=replace) as pending:
        yield cast(PendingStream, pending)


async def send(store: S3Store, ref: str, data: bytes, *, size: int | None = None, replace: bool = False) -> ObjectInfo:
    async with sending(store, ref, size=size, replace=replace) as pending:
        for start in range(0, len(data), MiB):
            await pending.write(memoryview(data)[start : start + MiB])
        return await pending.commit()


async def read_all(store: S3Store, info: ObjectInfo) -> bytes:
    async with store.present(info, Kind.BYTE_STREAM) as stream:
        assert isinstance(stream, ByteStream)
        return b"".join([bytes(piece) async for piece in stream])


def left(server: S3Server, bucket: str) -> tuple[set[str], list[str]]:
    """Keys, and keys of unfinished multipart uploads."""
    client = server.client()
    try:
        return keys(client, bucket), [key for key, _ in uploads(client, bucket)]
    finally:
        client.close()


# ------------------------------------------------------------------------------------------- credentials and places


async def test_wrong_secret_is_denied_everywhere(seaweed: S3Server, bucket: str, engine: TransferEngine) -> None:
    seaweed.client().put_object(Bucket=bucket, Key="object", Body=b"x")
    wrong = Secret("wrong-" + "s3cr3t")
    async with opened(engine, seaweed, bucket, secretKey=wrong) as store:

        async def read() -> None:
            await read_all(store, ObjectInfo("object", 1))

        async def listed() -> None:
            assert [info async for info in store.list()]

        async def written() -> None:
            await send(store, "new", b"x", replace=True)

        for call in (lambda: store.stat("object"), listed, read, written, lambda: store.delete("object")):
            with pytest.raises(AccessDenied) as denied:
                await cast(Callable[[], Awaitable[object]], call)()
            assert wrong.reveal() not in f"{denied.value!r} {denied.value.details} {denied.value.__cause__!r}"
    assert left(seaweed, bucket) == ({"object"}, [])


async def test_refusals_say_what_to_check(seaweed: S3Server, bucket: str, engine: TransferEngine) -> None:
    async with opened(engine, seaweed, bucket, secretKey=Secret("wrong")) as store:
        with pytest.raises(AccessDenied, match="secretKey"):
            await anext(store.list())
    async with opened(engine, seaweed, bucket, accessKey="unknown") as store:
        with pytest.raises(AccessDenied, match="accessKey"):
            await anext(store.list())


async def test_without_keys_nothing_is_signed(seaweed: S3Server, bucket: str, engine: TransferEngine) -> None:
    async with opened(engine, seaweed, bucket, accessKey=None, secretKey=None) as store:
        with pytest.raises(AccessDenied):
            await store.stat("object")


async def test_missing_bucket_is_not_found(seaweed: S3Server, engine: TransferEngine) -> None:
    async with opened(engine, seaweed, "no-such-bucket") as store:
        with pytest.raises(NotFound):
            await store.stat("object")
        with pytest.raises(NotFound, match="no such bucket"):
            await anext(store.list())
        with pytest.raises(NotFound):
            await read_all(store, ObjectInfo("object", 5))


async def test_environment_and_home_are_not_looked_at(
    seaweed: S3Server, bucket: str, engine: TransferEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\nregion = nowhere\nendpoint_url = http://127.0.0.1:9\n[profile p]\nregion = nowhere\n")
    credentials = tmp_path / "credentials"
    credentials.write_text(
        f"[default]\naws_access_key_id = {seaweed.access_key}\naws_secret_access_key = {seaweed.secret_key}\n"
    )
    environment = {
        "AWS_CONFIG_FILE": str(config),
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
        "AWS_PROFILE": "missing",
        "AWS_ACCESS_KEY_ID": seaweed.access_key,
        "AWS_SECRET_ACCESS_KEY": seaweed.secret_key,
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_CA_BUNDLE": "/nonexistent",
        "AWS_MAX_ATTEMPTS": "99",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with opened(engine, seaweed, bucket, accessKey=None, secretKey=None) as store:
        with pytest.raises(AccessDenied):
            await store.stat("object")
    async with opened(engine, seaweed, bucket) as store:
        await send(store, "object", b"own credentials")
        assert await read_all(store, await store.stat("object")) == b"own credentials"


async def test_nobody_there_is_unavailable(engine: TransferEngine, seaweed: S3Server) -> None:
    for endpoint in ("http://127.0.0.1:1", "http://name.invalid"):
        async with opened(engine, seaweed, "bucket", endPoint=endpoint, maxErrorRetry=0) as store:
            with pytest.raises(Unavailable):
                await store.stat("object")


# --------------------------------------------------------------------------------------------------------------- TLS


async def test_custom_authority_is_trusted_for_control_and_data(
    seaweed: S3Server, bucket: str, engine: TransferEngine
) -> None:
    settings = StoreSettings(ca_file=seaweed.ca_file, attempts=2)
    data = content(SMALLEST_PART + 5)
    async with opened(engine, seaweed, bucket, settings=settings, endPoint=seaweed.tls_endpoint) as store:
        info = await send(store, "object", data)
        assert sha(await read_all(store, info)) == sha(data)
    stored = seaweed.client().get_object(Bucket=bucket, Key="object")
    assert sha(stored["Body"].read()) == sha(data)
    assert "aws-chunked" not in stored.get("ContentEncoding", "")


async def test_unknown_authority_is_a_tls_failure(seaweed: S3Server, bucket: str, engine: TransferEngine) -> None:
    async with opened(engine, seaweed, bucket, endPoint=seaweed.tls_endpoint, maxErrorRetry=0) as store:
        with pytest.raises(TlsFailed, match="ca_file"):
            await store.stat("object")


async def test_tls_to_a_plain_port_is_a_tls_failure(seaweed: S3Server, bucket: str, engine: TransferEngine) -> None:
    endpoint = f"https://127.0.0.1:{seaweed.port}"
    async with opened(engine, seaweed, bucket, endPoint=endpoint, maxErrorRetry=0) as store:
        with pytest.raises(TlsFailed):
            await store.stat("object")


async def test_unreadable_ca_file_is_a_tls_failure(
    seaweed: S3Server, bucket: str, engine: TransferEngine, tmp_path: Path
) -> None:
    for path in (tmp_path / "missing.pem", tmp_path / "rubbish.pem"):
        (tmp_path / "rubbish.pem").write_text("no certificate")
        async with opened(engine, seaweed, bucket, settings=StoreSettings(ca_file=path)) as store:
            with pytest.raises(TlsFailed, match=r"\.pem"):
                await store.stat("object")


# ----------------------------------------------------------------------------------------------------------- reading


async def test_broken_connections_are_resumed(seaweed: S3Server, bucket: str, engine: TransferEngine) -> None:
    data = content(6 * MiB)
    seaweed.client().put_object(Bucket=bucket, Key="object", Body=data)
    async with FaultProxy(seaweed.port) as proxy:
        endpoint = f"http://127.0.0.1:{proxy.port}"
        async with opened(engine, seaweed, bucket, endPoint=endpoint) as store:
            info = await store.stat("object")
            proxy.cut_after, proxy.cut_times = 600_000, 4
            assert sha(await read_all(store, info)) == sha(data)
            assert proxy.cut_times == 0


async def test_refusing_server_is_given_up(seaweed: S3Server, bucket: str, engine: TransferEngine) -> None:
    seaweed.client().put_object(Bucket=bucket, Key="object", Body=b"x" * 1000)
    async with (
        FaultProxy(seaweed.port) as proxy,
        opened(engine, seaweed, bucket, endPoint=f"http://127.0.0.1:{proxy.port}", maxErrorRetry=1) as store,
    ):
        info = await store.stat("object")
        proxy.refuse = True
        with pytest.raises(Unavailable):
            await read_all(store, info)
        await store.aclose()
        with pytest.raises(Unavailable):
            await store.stat("object")


async def test_changed_object_is_noticed_in_mid_transfer(
    seaweed: S3Server, bucket: str, engine: TransferEngine
) -> None:
    client = seaweed.client()
    client.put_object(Bucket=bucket, Key="object", Body=content(3 * MiB, 1))
    async with opened(engine, seaweed, bucket) as store:
        info = await store.stat("object")
        async with store.present(info, Kind.RANGE_READER) as reader:
            assert isinstance(reader, RangeReader)
            assert await reader.read(0, MiB) == content(3 * MiB, 1)[:MiB]
            client.put_object(Bucket=bucket, Key="object", Body=content(3 * MiB, 2))
            with pytest.raises(ObjectChanged):
                await reader.read(MiB, MiB)


async def test_expired_url_is_signed_again(seaweed: S3Server, bucket: str, engine: TransferEngine) -> None:
    data = content(100_000)
    seaweed.client().put_object(Bucket=bucket, Key="object", Body=data)
    signed = 0

    async def resolve(host: str, port: int) -> tuple[str, ...]:
        nonlocal signed
        signed += 1
        return ("127.0.0.1",)

    async with (
        opened(engine, seaweed, bucket, presign_s=1, resolve=resolve) as store,
        store.present(await store.stat("object"), Kind.RANGE_READER) as reader,
    ):
        assert isinstance(reader, RangeReader)
        assert await reader.read(0, 50_000) == data[:50_000]
        await asyncio.sleep(2.2)
        assert await reader.read(50_000, 50_000) == data[50_000:]
        assert signed == 2


async def test_targets_take_turns_over_the_addresses(seaweed: S3Server, bucket: str, engine: TransferEngine) -> None:
    """An endpoint with a dead address: the reader gets to the live one."""
    seaweed.client().put_object(Bucket=bucket, Key="object", Body=b"alive")
    asked = []

    async def resolve(host: str, port: int) -> tuple[str, ...]:
        asked.append((host, port))
        return "127.0.0.2", "127.0.0.1"

    endpoint = f"http://localhost:{seaweed.port}"
    async with opened(engine, seaweed, bucket, resolve=resolve, endPoint=endpoint) as store:
        assert await read_all(store, await store.stat("object")) == b"alive"
    assert set(asked) == {("localhost", seaweed.port)}
    assert len(asked) == 2


# ----------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("extra", [0, 1, SMALLEST_PART + 17])
@pytest.mark.parametrize("announced", [True, False])
async def test_multipart_content_arrives_and_leaves_no_note(
    seaweed: S3Server, bucket: str, engine: TransferEngine, extra: int, announced: bool
) -> None:
    data = content(SMALLEST_PART + extra)
    async with opened(engine, seaweed, bucket) as store:
        info = await send(store, "dir/object", data, size=len(data) if announced else None)
        assert info == await store.stat("dir/object")
    assert sha(seaweed.client().get_object(Bucket=bucket, Key="dir/object")["Body"].read()) == sha(data)
    assert left(seaweed, bucket) == ({"dir/object"}, [])


async def test_parts_are_sent_again_when_answers_are_lost(
    seaweed: S3Server, bucket: str, engine: TransferEngine
) -> None:
    data = content(2 * SMALLEST_PART + 17)
    async with FaultProxy(seaweed.port) as proxy:
        endpoint = f"http://127.0.0.1:{proxy.port}"
        async with opened(engine, seaweed, bucket, endPoint=endpoint, maxErrorRetry=4) as store:
            async with sending(store, "object", size=len(data)) as pending:
                await pending.write(memoryview(data)[: SMALLEST_PART + 1])
                proxy.cut_after, proxy.cut_times = 40, 3
                await pending.write(memoryview(data)[SMALLEST_PART + 1 :])
                info = await pending.commit()
            assert proxy.cut_times == 0
            assert sha(await read_all(store, info)) == sha(data)
    assert left(seaweed, bucket) == ({"object"}, [])


@pytest.mark.parametrize("carried_out", [True, False])
async def test_lost_answer_to_a_completion_is_looked_into(
    seaweed: S3Server, bucket: str, engine: TransferEngine, monkeypatch: pytest.MonkeyPatch, carried_out: bool
) -> None:
    data = content(SMALLEST_PART + 17)
    async with opened(engine, seaweed, bucket) as store:
        call = store._client.call

        async def losing(operation: str, ref: str | None, /, **arguments: Any) -> dict[str, Any]:
            if operation != "complete_multipart_upload":
                return await call(operation, ref, **arguments)
            if carried_out:
                await call(operation, ref, **arguments)
            raise Unavailable("the answer was lost")

        monkeypatch.setattr(store._client, "call", losing)
        if carried_out:
            info = await send(store, "object", data)
            assert sha(await read_all(store, info)) == sha(data)
        else:
            with pytest.raises(Unavailable, match="lost"):
                await send(store, "object", data)
    assert left(seaweed, bucket) == ({"object"} if carried_out else set(), [])


async def test_always_multipart_is_obeyed(seaweed: S3Server, bucket: str, engine: TransferEngine) -> None:
    async with opened(engine, seaweed, bucket, maxSingleUploadSizeInBytes=0) as store:
        info = await send(store, "object", b"small")
        assert info.version is not None
        assert info.version.endswith('-1"')
        assert await read_all(store, info) == b"small"
    assert left(seaweed, bucket) == ({"object"}, [])


async def test_taken_name_stops_a_multipart_upload(seaweed: S3Server, bucket: str, engine: TransferEngine) -> None:
    client = seaweed.client()
    async with opened(engine, seaweed, bucket) as store:

        async def overtaken() -> None:
            async with sending(store, "object") as pending:
                await pending.write(memoryview(content(SMALLEST_PART + 1)))
                client.put_object(Bucket=bucket, Key="object", Body=b"first")
                await pending.commit()

        with pytest.raises(AlreadyExists):
            await overtaken()
    assert client.get_object(Bucket=bucket, Key="object")["Body"].read() == b"first"
    assert left(seaweed, bucket) == ({"object"}, [])


async def test_cancelled_multipart_upload_leaves_nothing(
    seaweed: S3Server, bucket: str, engine: TransferEngine
) -> None:
    data = memoryview(content(MiB))
    began = asyncio.Event()

    async def endless(store: S3Store) -> None:
        async with sending(store, "object") as pending:
            sent = 0
            while True:
                await pending.write(data)
                sent += len(data)
                if sent > SMALLEST_PART:
                    began.set()

    async with opened(engine, seaweed, bucket) as store:
        for delay in (0.0, 0.05, 0.3):
            began.clear()
            task = asyncio.create_task(endless(store))
            await began.wait()
            await asyncio.sleep(delay)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert left(seaweed, bucket) == (set(), [])
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_failing_part_ends_the_write_at_once(seaweed: S3Server, bucket: str, engine: TransferEngine) -> None:
    client = seaweed.client()
    async with opened(engine, seaweed, bucket, maxErrorRetry=0) as store:

        async def endless() -> None:
            async with sending(store, "object") as pending:
                await pending.write(memoryview(content(SMALLEST_PART + 1)))
                ((_, upload),) = uploads(client, bucket)
                client.abort_multipart_upload(Bucket=bucket, Key="object", UploadId=upload)
                while True:
                    await pending.write(memoryview(bytes(MiB)))

        with pytest.raises(Unavailable) as failed:
            await endless()
        assert failed.value.details["code"] == "NoSuchUpload"
    assert left(seaweed, bucket) == (set(), [])
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_leftovers_of_a_dead_writer_are_discarded_by_its_token(
    seaweed: S3Server, bucket: str, engine: TransferEngine, tmp_path: Path
) -> None:
    client = seaweed.client()
    others = client.create_multipart_upload(Bucket=bucket, Key="object")["UploadId"]
    async with opened(engine, seaweed, bucket) as store:
        source = tmp_path / "source"
        source.write_bytes(content(SMALLEST_PART + 1))
        # As a process that was killed leaves it: begun, noted, a part sent, never ended.
        async with store.upload("object", source, token="dead") as upload:
            await upload.send(1)
        assert left(seaweed, bucket) == ({marker_key("object", "dead")}, ["object", "object"])
        assert [info async for info in store.list()] == []

        await store.discard("object", token="other")
        await store.discard("another", token="dead")
        assert len(left(seaweed, bucket)[1]) == 2
        await store.discard("object", token="dead")
        await store.discard("object", token="dead")
    assert uploads(client, bucket) == [("object", others)]
    assert left(seaweed, bucket)[0] == set()


# ---------------------------------------------------------------------------------------------------- lying servers


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


# ----------------------------------------------------------------------------------------------------------- secrets


async def test_no_secret_reaches_a_log_or_an_error(
    seaweed: S3Server, bucket: str, engine: TransferEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[StorageError] = []
    async with opened(engine, seaweed, bucket, presign_s=1) as store:
        info = await send(store, "object", content(SMALLEST_PART + 1))
        async with store.present(info, Kind.RANGE_READER) as reader:
            assert isinstance(reader, RangeReader)
            await reader.read(0, 10)
            seaweed.client().delete_object(Bucket=bucket, Key="object")
            with pytest.raises((NotFound, ObjectChanged)) as gone:
                await reader.read(20, 10)
            errors.append(gone.value)
        with pytest.raises(NotFound) as missing:
            await store.stat("object")
        errors.append(missing.value)
        assert seaweed.secret_key not in f"{store!r} {vars(store)!r}"
    shown = [record.getMessage() for record in caplog.records]
    shown += [f"{error!r} {error.details} {error.__cause__!r}" for error in errors]
    assert not [line for line in shown if seaweed.secret_key in line or "Signature=" in line]


async def test_closed_store_keeps_no_descriptors(seaweed: S3Server, bucket: str) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def round_trip() -> None:
        engine = TransferEngine()
        async with opened(engine, seaweed, bucket) as store:
            info = await send(store, "object", content(100_000), replace=True)
            assert sha(await read_all(store, info)) == sha(content(100_000))
        await engine.aclose()

    await round_trip()
    before = descriptors()
    for _ in range(3):
        await round_trip()
    assert descriptors() <= before


def test_trust_is_not_weakened() -> None:
    context = trusting_context(None)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
