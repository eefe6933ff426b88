"""Objects in a real Swift when things go wrong: tokens that are refused, answers that are lost, storms of errors, wrong bytes;
and what is left then."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from stores.backends.swift import SwiftStore
from stores.backends.swift_config import SwiftCut
from stores.contract import KiB, MiB, Silent
from stores.errors import AccessDenied, AlreadyExists, IntegrityError, ObjectChanged, StoreError, Unavailable
from stores.settings import StoreSettings
from stores.transfer.engine import TransferEngine
from stores.transfer.sending import send_all
from tests.doubles.fault_proxy import FaultProxy
from tests.doubles.request_proxy import Fault, RequestProxy, Seen
from tests.objects import TOKEN, content, read_all, send, sending, sha
from tests.swift import Container, SwiftServer

QUICK = StoreSettings(connect_timeout=5, read_timeout=5, attempts=3)
SMALL = SwiftCut(smallest=64 * KiB, manifest=3)
"""Objects of a few hundred kilobytes have several segments, and several manifests."""
DATA = content(7 * 64 * KiB + 11)

Opened = Callable[..., SwiftStore]


@pytest.fixture(scope="module")
def shared(swift: SwiftServer) -> Iterator[Container]:
    container = Container(swift, f"c-{uuid.uuid4().hex[:12]}")
    yield container
    container.ask("DELETE")


@pytest.fixture
def container(shared: Container) -> Iterator[Container]:
    yield shared
    shared.log_in()
    shared.empty()


@pytest.fixture
async def opened(swift: SwiftServer, container: Container, engine: TransferEngine) -> AsyncIterator[Opened]:
    """Makes stores, by the port of whatever stands before the server."""
    stores: list[SwiftStore] = []

    def made(port: int | None = None, *, name: str | None = None, **fields: Any) -> SwiftStore:
        to = swift.to(name or container.name, port=port, **fields)
        stores.append(SwiftStore(to, QUICK, engine, cut=SMALL))
        return stores[-1]

    yield made
    for store in stores:
        await store.aclose()


@pytest.fixture
async def proxy(swift: SwiftServer) -> AsyncIterator[RequestProxy]:
    async with RequestProxy(swift.port) as proxy:
        yield proxy


def once(fault: Fault, method: str, part: str) -> Callable[[int, Seen], Fault | None]:
    """The first request of that method with `part` in its path."""
    done = False

    def plan(number: int, request: Seen) -> Fault | None:
        nonlocal done
        if done or request.method != method or part not in request.path:
            return None
        done = True
        return fault

    return plan


# ------------------------------------------------------------------------------------------------- large objects


async def test_manifests_of_manifests_read_as_one_and_go_as_one(opened: Opened, container: Container) -> None:
    store = opened()
    info = await send(store, "dir/large", DATA)
    assert sha(container.get("dir/large") or b"") == sha(DATA)
    assert len(container.segments()) == 8 + 3
    assert [(found.ref, found.size, found.version) async for found in store.list()] == [
        (info.ref, info.size, info.version)
    ]
    assert await read_all(store, info) == DATA
    await store.delete("dir/large")
    assert container.names() == set()


async def test_replaced_object_takes_its_segments_along(opened: Opened, container: Container) -> None:
    store = opened()
    await send(store, "large", DATA)
    old = container.segments()
    await send(store, "large", DATA[::-1], replace=True)
    assert sha(container.get("large") or b"") == sha(DATA[::-1])
    assert not old & container.segments()
    await send(store, "large", b"small", replace=True)
    assert container.names() == {"large"}


async def test_replaced_object_whose_segments_stayed_is_tidied_later(
    opened: Opened, container: Container, proxy: RequestProxy
) -> None:
    store = opened(proxy.port)
    await send(store, "large", DATA)
    proxy.plan = lambda number, request: Fault.ERROR_503 if request.method == "DELETE" else None
    await send(store, "large", DATA[::-1], replace=True)
    assert len(container.segments()) == 2 * (8 + 3)
    proxy.plan = lambda number, request: None
    await store.discard("large", token="another's")
    assert len(container.segments()) == 8 + 3
    assert sha(container.get("large") or b"") == sha(DATA[::-1])


async def test_discard_keeps_what_a_stored_object_is_made_of(opened: Opened, container: Container) -> None:
    store = opened()
    await send(store, "large", DATA)
    await store.discard("large", token=TOKEN)
    assert sha(container.get("large") or b"") == sha(DATA)


async def test_dead_writers_segments_are_discarded_by_token_alone(
    opened: Opened, container: Container, proxy: RequestProxy
) -> None:
    async with sending(opened(proxy.port), "large") as pending:
        await pending.write(memoryview(DATA))
        while len(container.segments()) < 3:
            await asyncio.sleep(0.01)
        proxy.dead = True
    assert container.segments()
    store = opened()
    await store.discard("large", token="another's")
    await store.discard("other", token=TOKEN)
    assert container.segments()
    await store.discard("large", token=TOKEN)
    assert container.names() == set()


async def test_copy_of_an_object_under_another_name_does_not_own_the_segments(
    opened: Opened, container: Container
) -> None:
    store = opened()
    await send(store, "large", DATA)
    _, headers, manifest = container.ask("GET", "large", query="?multipart-manifest=get&format=raw")
    meta = {name: value for name, value in headers.items() if name.lower().startswith("x-object-meta")}
    status, _, _ = container.ask("PUT", "copy", manifest, query="?multipart-manifest=put", **meta)
    assert status == 201
    await send(store, "copy", b"other", replace=True)
    assert sha(container.get("large") or b"") == sha(DATA)


async def test_large_object_of_others_is_removed_with_its_segments(opened: Opened, container: Container) -> None:
    container.put("parts/1", b"one ")
    container.put("parts/2", b"two")
    listed = [{"path": f"/{container.name}/parts/{number}"} for number in (1, 2)]
    container.ask("PUT", "foreign", json.dumps(listed).encode(), query="?multipart-manifest=put")
    store = opened()
    info = await store.stat("foreign")
    assert await read_all(store, info) == b"one two"
    await store.delete("foreign")
    assert container.names() == set()


# ------------------------------------------------------------------------------------------------------- tokens


async def test_refused_token_is_renewed_once_for_all(
    swift: SwiftServer, opened: Opened, container: Container, proxy: RequestProxy
) -> None:
    container.put("object", DATA)
    store = opened(proxy.port)
    info = await store.stat("object")
    swift.forget_tokens()
    async with asyncio.TaskGroup() as group:
        reads = [group.create_task(read_all(store, info)) for _ in range(4)]
        writes = [group.create_task(send(store, f"new/{number}", DATA)) for number in range(3)]
        group.create_task(store.stat("object"))
    assert {sha(read.result()) for read in reads} == {sha(DATA)}
    assert {write.result().size for write in writes} == {len(DATA)}
    assert len([request for request in proxy.requests if request.path.startswith("/auth/")]) == 2


async def test_token_refused_in_the_middle_of_a_write(swift: SwiftServer, opened: Opened, container: Container) -> None:
    async with sending(opened(), "object") as pending:
        await pending.write(memoryview(DATA)[: 3 * 64 * KiB])
        swift.forget_tokens()
        await pending.write(memoryview(DATA)[3 * 64 * KiB :])
        await pending.commit()
    container.log_in()
    assert sha(container.get("object") or b"") == sha(DATA)


async def test_wrong_key_is_denied_and_not_shown(opened: Opened) -> None:
    with pytest.raises(AccessDenied) as failed:
        await opened(key="wrong-key-of-a-user").stat("object")
    assert "wrong-key-of-a-user" not in str(failed.value.details) + failed.value.message


async def test_user_without_rights_is_denied(opened: Opened) -> None:
    with pytest.raises(AccessDenied):
        await opened(userName="guest").stat("object")


# ------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", [Fault.ERROR_503, Fault.CUT, Fault.LOST, Fault.LATE_500, Fault.CORRUPT])
@pytest.mark.parametrize("part", ["segments/", "multipart-manifest=put", "/small"])
async def test_one_fault_is_weathered(
    opened: Opened, container: Container, proxy: RequestProxy, fault: Fault, part: str
) -> None:
    if fault is Fault.CORRUPT and "manifest" in part:
        return  # what is damaged there is no JSON, which the server says is our fault
    proxy.plan = once(fault, "PUT", part)
    store = opened(proxy.port)
    name, data = ("small", b"few bytes") if part == "/small" else ("large", DATA)
    await send(store, name, data)
    assert sha(container.get(name) or b"") == sha(data)
    await store.delete(name)
    assert container.names() == set()


async def test_storm_of_errors_ends_the_write_and_leaves_nothing(
    opened: Opened, container: Container, proxy: RequestProxy
) -> None:
    store = opened(proxy.port)
    for path in ("segments/", "multipart-manifest=put"):
        proxy.plan = lambda number, request, path=path: (  # type: ignore[misc]
            Fault.ERROR_503 if request.method == "PUT" and path in request.path else None
        )
        with pytest.raises(Unavailable):
            await send(store, "large", DATA)
        await store.discard("large", token=TOKEN)
        assert container.names() == set()


async def test_object_whose_answers_were_all_lost_is_found_and_believed(
    opened: Opened, container: Container, proxy: RequestProxy
) -> None:
    proxy.plan = lambda number, request: Fault.LOST if "multipart-manifest=put" in request.path else None
    store = opened(proxy.port)
    with pytest.raises(Unavailable):  # a manifest of manifests: that of the first segments has no other proof
        await send(store, "large", DATA)
    await store.discard("large", token=TOKEN)
    info = await send(store, "three", DATA[: 3 * 64 * KiB])
    assert sha(container.get("three") or b"") == sha(DATA[: 3 * 64 * KiB])
    assert (await store.stat("three")).version == info.version


async def test_anothers_object_is_not_taken_for_ours_after_a_lost_answer(
    opened: Opened, container: Container, proxy: RequestProxy
) -> None:
    store = opened(proxy.port)
    async with sending(store, "object") as pending:
        await pending.write(memoryview(b"ours"))
        proxy.plan = once(Fault.ERROR_503, "PUT", "/object")
        container.put("object", b"ours")
        with pytest.raises(AlreadyExists):
            await pending.commit()
    assert container.get("object") == b"ours"


async def test_reading_goes_on_where_connections_break(
    swift: SwiftServer, opened: Opened, container: Container
) -> None:
    data = content(3 * MiB)
    container.put("object", data)
    async with FaultProxy(swift.port) as proxy:
        store = opened(proxy.port)
        info = await store.stat("object")
        proxy.cut_after, proxy.cut_times = 300 * KiB, 4
        assert sha(await read_all(store, info)) == sha(data)
        assert proxy.cut_times == 0


async def test_large_object_that_is_replaced_is_not_read_on(opened: Opened, container: Container) -> None:
    store = opened()
    info = await send(store, "large", DATA)
    await send(store, "large", DATA[::-1], replace=True)
    with pytest.raises(ObjectChanged):
        await read_all(store, info)


async def test_upload_goes_on_over_faults_and_is_whole(
    opened: Opened, container: Container, proxy: RequestProxy, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(content(16 * MiB + 5))
    proxy.plan = lambda number, request: Fault.ERROR_503 if request.path.endswith("00000002") else None
    with pytest.raises(Unavailable):
        async with opened(proxy.port).upload("large", source, token=TOKEN) as upload:
            await send_all(upload, progress=Silent())
    assert container.segments()
    async with opened().upload("large", source, token=TOKEN) as upload:
        info = await send_all(upload, progress=Silent())
    assert sha(container.get("large") or b"") == sha(source.read_bytes())
    other = tmp_path / "other"
    other.write_bytes(content(16 * MiB + 5, 2))
    async with opened().upload("large", other, token=TOKEN, replace=True) as upload:
        assert (await send_all(upload, progress=Silent())).version != info.version
    assert sha(container.get("large") or b"") == sha(other.read_bytes())
    assert len(container.segments()) == 3


# ----------------------------------------------------------------------------------------------- what a server says


async def test_wrong_etag_is_not_called_stored(engine: TransferEngine) -> None:
    """By a server that keeps what it is sent, and says that it has other bytes."""
    kept: dict[str, bytes] = {}

    async def answer(request: web.Request) -> web.StreamResponse:
        at = f"http://127.0.0.1:{port}/v1/a"
        if request.path.startswith("/auth"):
            return web.Response(headers={"X-Auth-Token": "token-of-the-double", "X-Storage-Url": at})
        name = request.path.removeprefix("/v1/a/")
        if request.method == "PUT":
            kept[name] = await request.read()
            return web.Response(status=201, headers={"ETag": "0" * 32})
        if request.method == "DELETE":
            kept.pop(name, None)
            return web.Response(status=204)
        return web.Response(status=404 if "/" in name else 200)

    application = web.Application(client_max_size=4 * MiB)
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    store = SwiftStore(SwiftServer(port, "any-key-will-do", 0).to("c"), QUICK, engine, cut=SMALL)
    try:
        for data in (b"small", DATA):
            with pytest.raises(IntegrityError):
                await send(store, "object", data)
        assert not any(name.startswith("c/.storage-agent") for name in kept)
    finally:
        await store.aclose()
        await runner.cleanup()


async def test_container_is_made_with_its_policy(swift: SwiftServer, opened: Opened) -> None:
    name = f"made-{uuid.uuid4().hex[:12]}"
    assert [info async for info in opened(name=name).list()] == []
    assert (await opened(name=name).usage()).used == 0
    with pytest.raises(StoreError):
        await send(opened(name=name, storagePolicy="no such"), "object", b"x")
    await send(opened(name=name, storagePolicy="Policy-0"), "object", b"x")
    made = Container(swift, name)
    assert made.names() == {"object"}
    made.empty()
    made.ask("DELETE")


async def test_quota_is_the_capacity_and_its_end_is_told(opened: Opened, container: Container) -> None:
    container.ask("POST", X_Container_Meta_Quota_Bytes="100000")
    try:
        store = opened()
        assert (await store.usage()).capacity == 100_000
        container.put("object", bytes(90_000))
        async with asyncio.timeout(30):
            while (await store.usage()).used < 90_000:
                await asyncio.sleep(0.1)
    finally:
        container.ask("POST", X_Remove_Container_Meta_Quota_Bytes="x")


async def test_keystone_lets_in_by_its_version_3(
    swift: SwiftServer, container: Container, engine: TransferEngine
) -> None:
    """A double of Keystone, before the real Swift: its tokens are Swift's own."""
    seen: list[Any] = []

    async def tokens(request: web.Request) -> web.Response:
        seen.append(await request.json())
        if seen[-1]["auth"]["identity"]["password"]["user"]["password"] != swift.key:
            return web.Response(status=401)
        catalog = [
            {"type": "object-store", "endpoints": [
                {"interface": "admin", "region": "r1", "url": "http://127.0.0.1:1/"},
                {"interface": "public", "region": "r2", "url": "http://127.0.0.1:1/"},
                {"interface": "public", "region": "r1", "url": f"{container.account}/"},
            ]},
        ]  # fmt: skip
        return web.json_response(
            {"token": {"catalog": catalog}}, status=201, headers={"X-Subject-Token": container.token}
        )

    application = web.Application()
    application.router.add_post("/identity/v3/auth/tokens", tokens)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/identity/v3"
    try:
        for region, error in (("r1", None), ("r3", StoreError)):
            to = swift.to(container.name, url=url, account="project", region=region, domain="Users")
            store = SwiftStore(to, QUICK, engine)
            try:
                if error is None:
                    assert await read_all(store, await send(store, "object", b"content")) == b"content"
                else:
                    with pytest.raises(error):
                        await store.stat("object")
            finally:
                await store.aclose()
    finally:
        await runner.cleanup()
    asked = seen[0]["auth"]
    assert asked["scope"] == {"project": {"name": "project", "domain": {"name": "Users"}}}
    assert asked["identity"]["password"]["user"]["name"] == "tester"
