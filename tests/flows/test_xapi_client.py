"""Our client of XAPI against the fake pool: sessions, coordinators, tasks, and whole disks in and out, undisturbed and
disturbed. After each test the pool has nothing of ours left."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hypervisors.xen.chunks import ChunkEncoder
from hypervisors.xen.errors import XapiBusy, XapiFailure, XapiRefused
from hypervisors.xen.hosts import Host, Trust, parse_host
from stores.contract import MiB
from stores.errors import AccessDenied, IntegrityError, StorageError, TlsFailed, Unavailable
from tests.doubles.xapi import Pool, Settings, running
from tests.images import content
from tests.xapi_agent import PATIENCE, SIZE, Agent, agent, in_pieces, sha256, until_detached


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Pool]:
    async with running(tmp_path / "p", Settings()) as pool:
        yield pool
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def ours(pool: Pool) -> AsyncIterator[Agent]:
    async with agent(pool) as one:
        yield one


# -------------------------------------------------------------------------------------------------------- sessions


async def test_many_calls_share_one_session(ours: Agent) -> None:
    await asyncio.gather(*(ours.client.call("host.get_all") for _ in range(20)))
    assert (await ours.pool.controls.left())["sessions"] == ["agent-1"]
    await ours.pool.controls.drop_sessions()
    await asyncio.gather(*(ours.client.call("host.get_all") for _ in range(20)))
    assert (await ours.pool.controls.calls())["session.login_with_password"] == 2


async def test_a_lost_session_is_replaced_and_the_call_made(ours: Agent) -> None:
    await ours.pool.controls.arm(where="rpc", step="start", action="lose-session", match="VDI.create")
    await ours.disk()
    assert len((await ours.pool.controls.left())["vdis"]) == 1


@pytest.mark.parametrize("action", ["drop", "http", "garbage"])
@pytest.mark.parametrize("step", ["start", "answer"])
async def test_calls_outlast_logins_that_fail(ours: Agent, action: str, step: str) -> None:
    """Which is before they were made."""
    await ours.pool.controls.arm(where="rpc", step=step, action=action, match="session.login_with_password")
    await ours.disk()
    assert len((await ours.pool.controls.left())["vdis"]) == 1
    await ours.pool.controls.drop_sessions()  # a login without an answer has made one that nobody knows


async def test_a_cancelled_login_leaves_no_session_behind(pool: Pool) -> None:
    """Neither where another call comes, which uses it, nor where the connection is closed."""
    for closed_at_once in (False, True):
        async with agent(pool) as ours:
            asked = await _asking(ours, action="delay", seconds=0.2, step="answer")
            asked.cancel()
            await asyncio.wait([asked])
            assert asked.cancelled()
            if not closed_at_once:
                await ours.client.call("host.get_all")
    assert (await pool.controls.calls())["session.login_with_password"] == 2


async def test_closing_waits_for_no_host_that_hangs(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypervisors.xen.session._LOGOUT_S", 0.05)
    async with agent(pool) as ours:
        asked = await _asking(ours, action="hang", step="start")
    with pytest.raises(Unavailable, match="being closed"):
        await asked
    await pool.controls.disarm()


async def _asking(ours: Agent, **fault: object) -> asyncio.Task[object]:
    """A call that is at its login, with which something is wrong."""
    await ours.pool.controls.arm(where="rpc", match="session.login_with_password", **fault)
    asked = asyncio.create_task(ours.client.call("host.get_all"))
    while not any(fault.hits for fault in ours.pool.world.faults._armed):
        await asyncio.sleep(0.001)
    await ours.pool.controls.disarm()
    return asked


async def test_sessions_that_never_last_are_an_error(ours: Agent) -> None:
    await ours.pool.controls.arm(where="rpc", step="start", action="lose-session", match="VDI.*", times=None)
    with pytest.raises(XapiBusy) as caught:
        await ours.client.call("VDI.get_all")
    assert (caught.value.code, caught.value.params) == ("SESSION_INVALID", ())


async def test_what_is_secret_is_not_repeated(ours: Agent) -> None:
    await ours.client.call("host.get_all")
    (ref,) = ours.pool.world.db.refs("session")
    await ours.pool.controls.arm(where="rpc", step="start", action="fail", error=["HANDLE_INVALID", "session", ref])
    with pytest.raises(XapiFailure) as caught:
        await ours.client.call("VDI.get_all")
    assert caught.value.params == ("session", "***")
    assert ref not in f"{caught.value!r} {caught.value.details} {ours.client._session!r}"


async def test_members_say_who_the_coordinator_is(pool: Pool) -> None:
    hosts = [parse_host(url) for url in reversed(pool.access.urls)]
    async with agent(pool, hosts=hosts) as ours:
        await ours.client.call("host.get_all")
    async with agent(pool, hosts=hosts[:1]) as ours:
        with pytest.raises(XapiRefused, match="not among the configured hosts"):
            await ours.client.call("host.get_all")


async def test_another_coordinator_is_found(ours: Agent) -> None:
    await ours.client.call("host.get_all")
    await ours.pool.controls.make_coordinator(1)
    await ours.pool.controls.stop_host(0)
    await ours.client.call("host.get_all")
    await ours.pool.controls.stop_host(1)
    with pytest.raises(Unavailable, match="cannot be reached"):
        await ours.client.call("host.get_all")
    await ours.pool.controls.start_host(1)
    await ours.client.call("host.get_all")


async def test_wrong_passwords_and_wrong_hosts(pool: Pool) -> None:
    async with agent(pool, password="wrong") as ours:
        with pytest.raises(AccessDenied) as caught:
            await ours.client.call("host.get_all")
        assert "wrong" not in f"{caught.value} {caught.value.details}"
    await pool.controls.show_certificate(0, "another-host")
    await pool.controls.show_certificate(1, "stranger")
    async with agent(pool) as ours:
        with pytest.raises(TlsFailed):
            await ours.client.call("host.get_all")
    assert (await pool.controls.calls()).get("session.login_with_password", 0) == 1


async def test_pinned_certificates_and_dom0s_socket(pool: Pool) -> None:
    disk = b""
    for hosts, works in (
        ([parse_host(pool.access.urls[0], await fingerprint(pool))], True),
        ([parse_host(pool.access.urls[0], "00" * 32)], False),
        ([parse_host(f"unix:{pool.access.sockets[0]}")], True),
    ):
        async with agent(pool, hosts=hosts) as ours:
            if not works:
                with pytest.raises(TlsFailed):
                    await ours.client.call("host.get_all")
                continue
            disk = content(SIZE, seed=1)
            vdi = await ours.disk()
            await ours.streams.upload(vdi, in_pieces(disk), image_format="raw", length=SIZE)
            assert await ours.digest(vdi) == sha256(disk)


async def fingerprint(pool: Pool) -> str:
    port = int(pool.access.urls[0].rsplit(":", 1)[1])
    trust = Trust(None)
    pinned = replace(Host("127.0.0.1", port), fingerprint=bytes(32))
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust.context(pinned))
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return hashlib.sha256(certificate).hexdigest()


@pytest.mark.parametrize("action", ["drop", "http", "garbage", "hang"])
@pytest.mark.parametrize("step", ["start", "answer"])
async def test_reading_is_tried_again_and_changing_is_not(ours: Agent, action: str, step: str) -> None:
    """Nobody knows whether a call without an answer was made."""
    sr = (await ours.client.call("SR.get_by_name_label", "shared"))[0]
    told = {"SR": sr, "virtual_size": SIZE, "type": "user", "sharable": False, "read_only": False}
    await ours.pool.controls.arm(where="rpc", step=step, action=action, match="VDI.*")
    assert await ours.client.call("VDI.get_all", timeout_s=0.5) == []
    await ours.pool.controls.arm(where="rpc", step=step, action=action, match="VDI.create")
    with pytest.raises(Unavailable):
        await ours.client.call("VDI.create", told, timeout_s=0.5)
    assert len(await ours.client.call("VDI.get_all")) == (1 if step == "answer" else 0)


# ----------------------------------------------------------------------------------------------------------- tasks


async def test_tasks_are_waited_for_by_one_call(ours: Agent) -> None:
    disk = await ours.disk()
    tasks = [await ours.client.call("Async.VDI.clone", disk) for _ in range(4)]
    results = await asyncio.gather(*(ours.tasks.result(task) for task in tasks))
    clones = await ours.client.call("VDI.get_all")
    assert sorted([disk, *results]) == sorted(clones)
    for task in tasks:
        await ours.client.call("task.destroy", task)


async def test_tasks_fail_with_what_they_failed_with(ours: Agent) -> None:
    seen: list[float] = []
    task = await ours.client.call("Async.VDI.destroy", "OpaqueRef:none")
    with pytest.raises(XapiFailure, match="HANDLE_INVALID") as caught:
        await ours.tasks.result(task, progress=seen.append)
    assert caught.value.params == ("VDI", "OpaqueRef:none")
    assert seen[-1] == 1.0
    await ours.client.call("task.destroy", task)


async def test_failures_of_those_who_watch_are_raised_as_they_are(pool: Pool) -> None:
    with pytest.raises(XapiFailure, match="UUID_INVALID"):
        async with agent(pool) as ours:
            await ours.client.call("VDI.get_by_uuid", "none")
    assert (await pool.controls.left())["sessions"] == []


async def test_a_task_that_is_gone_is_not_waited_for(ours: Agent) -> None:
    disk = await ours.disk()
    await ours.pool.controls.arm(where="async", step="start", action="hang", times=2)
    for end in (ours.pool.controls.lose_task, None):
        task = await ours.client.call("Async.VDI.destroy", disk)
        waiting = asyncio.create_task(ours.tasks.result(task))
        await asyncio.sleep(0.1)
        await (end(task) if end is not None else ours.pool.controls.restart(sessions=False, generation=1))
        with pytest.raises(Unavailable, match="does not know the task"):
            async with asyncio.timeout(20):
                await waiting


async def test_waiting_goes_on_after_a_restart_that_loses_events(pool: Pool) -> None:
    """The token of before is not refused: it is just silent."""
    async with agent(pool, poll_s=0.3) as ours:
        task = await ours.client.call("task.create", "somebody's", "")
        waiting = asyncio.create_task(ours.tasks.ended(task))
        await asyncio.sleep(0.1)
        pool.world.db.restart(1)
        await ours.client.call("task.set_status", task, "success")
        async with asyncio.timeout(20):
            assert (await waiting)["status"] == "success"
        await ours.client.call("task.destroy", task)


# --------------------------------------------------------------------------------------------------------- streams


def framed(data: bytes) -> Iterator[bytes | memoryview]:
    encoder = ChunkEncoder(skip_zeroes=True)
    for offset in range(0, len(data), MiB):
        yield from encoder.add(offset, data[offset : offset + MiB])
    yield from encoder.finish()


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for frame in framed(data):
        yield bytes(frame)


@pytest.mark.parametrize("chunked", [True, False])
async def test_disks_go_in_and_out(ours: Agent, chunked: bool) -> None:
    data = content(2 * MiB) + bytes(4 * MiB) + content(2 * MiB, seed=1)
    disk = await ours.disk()
    if chunked:
        await ours.streams.upload(disk, chunks(data), image_format="raw", chunked=True)
    else:
        await ours.streams.upload(disk, in_pieces(data), image_format="raw", length=SIZE)
    assert await ours.digest(disk) == sha256(data)
    async with ours.streams.download(disk, image_format="raw") as pieces:
        assert sha256(b"".join([piece async for piece in pieces])) == sha256(data)
    up, _ = await ours.pool.controls.transfers()
    assert up["credential"] == "cookie"
    assert up["body"] < 5 * MiB if chunked else up["body"] == SIZE


async def test_backups_restore_what_they_were_made_of(ours: Agent, tmp_path: Path) -> None:
    disk = await ours.disk()
    number = await ours.client.call("VDI.get_uuid", disk)
    (tmp_path / "data").write_bytes(content(MiB))
    images, base = [], None
    for offset in (0, 5 * MiB):
        await ours.pool.controls.write(number, offset, str(tmp_path / "data"))
        snapshot = await ours.client.call("VDI.snapshot", disk)
        async with ours.streams.download(snapshot, image_format="vhd", base=base) as pieces:
            images.append(b"".join([piece async for piece in pieces]))
        base = snapshot
    assert len(images[1]) < 3 * MiB
    restored = await ours.disk()
    for image in images:
        await ours.streams.upload(restored, in_pieces(image), image_format="vhd", length=len(image))
    assert await ours.digest(restored) == await ours.digest(disk)


async def test_hosts_that_see_the_disk_are_followed(ours: Agent) -> None:
    data = content(SIZE)
    disk = await ours.disk("local-1")
    await ours.streams.upload(disk, in_pieces(data), image_format="raw", length=SIZE)
    assert await ours.digest(disk) == sha256(data)
    statuses = [(transfer["host"], transfer["status"]) for transfer in await ours.pool.controls.transfers()]
    assert statuses == [(0, 302), (1, 200)]


@pytest.mark.parametrize(
    ("to", "times", "error", "match"),
    [
        ("192.0.2.1", 1, XapiRefused, "not among the configured hosts"),
        ("self", None, Unavailable, "in a circle"),
    ],
)
async def test_redirects_have_bounds(
    ours: Agent, to: str, times: int | None, error: type[StorageError], match: str
) -> None:
    disk = await ours.disk()
    address = ours.pool.access.address(0) if to == "self" else to
    await ours.pool.controls.arm(where="import", step="head", action="redirect", to=address, times=times)
    taken = []

    async def body() -> AsyncIterator[bytes]:
        taken.append(1)
        yield b""

    with pytest.raises(error, match=match):
        await ours.streams.upload(disk, body(), image_format="raw", length=SIZE)
    assert taken == []


async def test_a_session_that_ends_before_a_transfer_is_replaced(ours: Agent) -> None:
    disk = await ours.disk()
    await ours.pool.controls.arm(where="import", step="head", action="http", status=401)
    await ours.streams.upload(disk, in_pieces(bytes(SIZE)), image_format="raw", length=SIZE)
    assert (await ours.pool.controls.calls())["session.login_with_password"] == 2
    await ours.pool.controls.arm(where="import", step="head", action="http", status=401, times=None)
    with pytest.raises(XapiRefused, match="HTTP 401"):
        await ours.streams.upload(disk, in_pieces(bytes(SIZE)), image_format="raw", length=SIZE)


@pytest.mark.parametrize(
    ("fault", "error", "match"),
    [
        ({"step": "head", "action": "drop"}, Unavailable, "without an answer"),
        ({"step": "head", "action": "hang"}, Unavailable, "did not answer within"),
        ({"step": "head", "action": "http", "status": 503}, Unavailable, "HTTP 503"),
        ({"step": "head", "action": "http", "status": 403}, XapiRefused, "HTTP 403"),
        ({"step": "head", "action": "http", "status": 404}, XapiFailure, "HTTP 404"),
        ({"step": "attach", "action": "fail", "error": ["VDI_IN_USE", "x", "attach"]}, XapiBusy, "VDI_IN_USE"),
        ({"step": "attach", "action": "drop"}, XapiBusy, "VDI_IO_ERROR"),
        ({"step": "body", "action": "drop", "at_byte": 3 * MiB}, XapiBusy, "VDI_IO_ERROR"),
        ({"step": "body", "action": "cancel", "at_byte": 3 * MiB}, XapiBusy, "TASK_CANCELLED"),
        ({"step": "body", "action": "lose-task", "at_byte": 3 * MiB}, Unavailable, "does not know the task"),
        ({"step": "body", "action": "hang", "at_byte": 3 * MiB, "seconds": 1.5}, Unavailable, "moved no byte"),
        ({"step": "body", "action": "silent-end", "at_byte": 3 * MiB}, Unavailable, "XAPI is stuck"),
        ({"step": "end", "action": "fail", "error": ["SR_BACKEND_FAILURE_44", ""]}, XapiRefused, "FAILURE_44"),
        ({"step": "end", "action": "drop"}, XapiBusy, "VDI_IO_ERROR"),
        ({"step": "end", "action": "silent-end"}, Unavailable, "XAPI is stuck"),
        ({"step": "end", "action": "hang"}, Unavailable, "moved no byte"),
    ],
)
@pytest.mark.parametrize("where", ["import", "export"])
async def test_every_disturbance_ends_in_its_error(
    pool: Pool, where: str, fault: dict[str, object], error: type[StorageError], match: str
) -> None:
    """And `agent` sees that no task, session or attached disk is left."""
    waits = {"hang": replace(PATIENCE, **{"head_s" if fault["step"] == "head" else "stall_s": 0.5})}
    patience = waits.get(str(fault["action"]), PATIENCE)
    async with agent(pool, patience=patience, grace_s=1.0 if fault["action"] == "silent-end" else 10.0) as ours:
        disk = await ours.disk()
        await pool.controls.arm(where=where, **fault)
        with pytest.raises(error, match=match):
            await transferred(ours, where, disk)
        await until_detached(pool)
    async with agent(pool) as ours:
        await transferred(ours, where, disk)


async def transferred(ours: Agent, where: str, disk: str) -> None:
    if where == "import":
        await ours.streams.upload(disk, in_pieces(bytes(SIZE)), image_format="raw", length=SIZE)
        return
    async with ours.streams.download(disk, image_format="raw") as pieces:
        async for _ in pieces:
            pass


@pytest.mark.parametrize("length", [SIZE + 1, SIZE - MiB])
async def test_sources_are_as_long_as_announced(ours: Agent, length: int) -> None:
    disk = await ours.disk()
    with pytest.raises((IntegrityError, XapiBusy)):
        await ours.streams.upload(disk, in_pieces(bytes(SIZE)), image_format="raw", length=length)


async def test_an_export_that_claims_to_be_whole_is_shorter(ours: Agent) -> None:
    """Which only its length tells."""
    disk = await ours.disk()
    await ours.pool.controls.arm(where="export", step="body", action="false-success", at_byte=3 * MiB)
    async with ours.streams.download(disk, image_format="raw") as pieces:
        assert sum([len(piece) async for piece in pieces]) == 3 * MiB


async def test_a_download_may_be_left_early(ours: Agent) -> None:
    disk = await ours.disk()
    async with ours.streams.download(disk, image_format="raw") as pieces:
        async for _ in pieces:
            break
    await ours.client.call("VDI.destroy", disk)


async def test_a_host_that_claims_success_too_early(ours: Agent) -> None:
    """An end before the last of our bytes: more was sent than the chunks' terminator allows for."""
    disk = await ours.disk()
    end = struct.pack("<QI", 0, 0)

    async def body() -> AsyncIterator[bytes]:
        yield end
        while True:
            yield bytes(MiB)

    with pytest.raises(IntegrityError, match="has not taken all of it"):
        await ours.streams.upload(disk, body(), image_format="raw", chunked=True)


@pytest.mark.parametrize("where", ["import", "export"])
async def test_a_cancelled_transfer_leaves_nothing(ours: Agent, where: str) -> None:
    disk = await ours.disk()
    under_way = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield bytes(MiB)
        under_way.set()
        await asyncio.Event().wait()

    async def transfer() -> None:
        if where == "import":
            await ours.streams.upload(disk, body(), image_format="raw", length=SIZE)
        async with ours.streams.download(disk, image_format="raw") as pieces:
            async for _ in pieces:
                under_way.set()
                await asyncio.Event().wait()

    running_transfer = asyncio.create_task(transfer())
    await under_way.wait()
    running_transfer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running_transfer
    left = await ours.pool.controls.left()
    assert (left["tasks"], left["dom0_vbds"]) == ([], [])
    await ours.client.call("VDI.destroy", disk)


async def test_sources_that_fail_end_the_upload(ours: Agent) -> None:
    disk = await ours.disk()

    async def body() -> AsyncIterator[bytes]:
        yield bytes(MiB)
        raise Unavailable("the source is gone")

    with pytest.raises(Unavailable, match="the source is gone"):
        await ours.streams.upload(disk, body(), image_format="raw", length=SIZE)
    assert (await ours.pool.controls.left())["dom0_vbds"] == []


async def test_a_transfer_that_is_cancelled_while_its_task_is_made(ours: Agent) -> None:
    disk = await ours.disk()
    await ours.pool.controls.arm(where="rpc", step="answer", action="delay", match="task.create", seconds=0.3)
    transfer = asyncio.create_task(transferred(ours, "import", disk))
    while "task.create" not in await ours.pool.controls.calls():
        await asyncio.sleep(0.01)
    transfer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await transfer
    assert (await ours.pool.controls.left())["tasks"] == []
