"""S3 transfers that go wrong on real servers: broken connections, lost answers, expired signatures, other writers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from stores.backends.s3 import S3Store
from stores.backends.s3_notes import marker_key
from stores.backends.s3_parts import SMALLEST_PART
from stores.contract import Kind, MiB, RangeReader
from stores.errors import AlreadyExists, ObjectChanged, Unavailable
from stores.transfer.engine import TransferEngine
from tests.buckets import uploads
from tests.doubles.fault_proxy import FaultProxy
from tests.flows.s3.stores import left, opened
from tests.objects import content, read_all, send, sending, sha
from tests.servers import S3Server

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
    """The first is valid for a second, the others for as long as a busy machine may take to use them."""
    data = content(100_000)
    seaweed.client().put_object(Bucket=bucket, Key="object", Body=data)
    signed = 0

    async def resolve(host: str, port: int) -> tuple[str, ...]:
        nonlocal signed
        signed += 1
        store._signer._expiry_s = 900
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
