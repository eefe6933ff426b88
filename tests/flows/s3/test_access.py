"""S3 that is not to be had: credentials, buckets and certificates that are wrong; and no secret gets out."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from stores.backends.connecting import trusting_context
from stores.backends.s3_parts import SMALLEST_PART
from stores.contract import Kind, ObjectInfo, RangeReader
from stores.errors import AccessDenied, NotFound, ObjectChanged, StorageError, TlsFailed, Unavailable
from stores.secret import Secret
from stores.settings import StoreSettings
from stores.transfer.engine import TransferEngine
from tests.flows.s3.stores import left, opened
from tests.objects import content, read_all, send, sha
from tests.servers import S3Server

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


# ----------------------------------------------------------------------------------------------------------- secrets


async def test_no_secret_reaches_a_log_or_an_error(
    seaweed: S3Server, bucket: str, engine: TransferEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[StorageError] = []
    async with opened(engine, seaweed, bucket) as store:
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
