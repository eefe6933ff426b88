"""The fake XenServer pool's switches: each does what it says, and nothing of a disturbed transfer is left."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from stores.contract import MiB
from tests.doubles.xapi import Fault, Pool, Settings, running
from tests.images import make_raw

SIZE = 8 * MiB
UP = "PUT /import_raw_vdi?vdi={vdi}&task_id={task} HTTP/1.0"
DOWN = "GET /export_raw_vdi?vdi={vdi}&task_id={task} HTTP/1.0"


class Client:
    """The least that speaks to a pool: one call after the other, no second tries."""

    def __init__(self, pool: Pool, http: aiohttp.ClientSession) -> None:
        self._pool = pool
        self._http = http
        self.trust = ssl.create_default_context(cadata=pool.access.ca_pem)
        self.session = ""

    async def call(self, method: str, *params: Any, host: int = 0, timeout: float = 30.0) -> Any:
        """The result; XAPI's failures are `RuntimeError(code)`."""
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        url, limit = f"{self._pool.access.urls[host]}/jsonrpc", aiohttp.ClientTimeout(timeout)
        async with self._http.post(url, json=body, ssl=self.trust, timeout=limit) as answer:
            answer.raise_for_status()
            told = json.loads(await answer.text())
        if "error" in told:
            raise RuntimeError(told["error"]["message"])
        return told["result"]

    async def do(self, method: str, *params: Any, host: int = 0, timeout: float = 30.0) -> Any:
        return await self.call(method, self.session, *params, host=host, timeout=timeout)

    async def login(self) -> None:
        access = self._pool.access
        self.session = await self.call("session.login_with_password", access.user, access.password, "1.0", "test")

    async def disk(self, **further: Any) -> str:
        sr = (await self.do("SR.get_by_name_label", "shared"))[0]
        told = {"SR": sr, "virtual_size": SIZE, "type": "user", "sharable": False, "read_only": False, **further}
        return str(await self.do("VDI.create", told))

    async def exchange(self, line: str, body: bytes = b"", *, host: int = 0) -> tuple[int, int]:
        """Status and length of what came back until the end; a reset is ConnectionError or ends it too."""
        port = int(self._pool.access.urls[host].rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=self.trust, limit=MiB)
        try:
            head = f"{line}\r\nCookie: session_id={self.session}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode())
            status = int((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1])
            if status == 200:
                writer.write(body)
                await writer.drain()
            count = 0
            while data := await reader.read(MiB):
                count += len(data)
            return status, count
        finally:
            writer.transport.abort()

    async def ended(self, task: str, timeout: float = 30.0) -> tuple[str, list[str]]:
        token = ""
        async with asyncio.timeout(timeout):
            while (record := await self.do("task.get_record", task))["status"] == "pending":
                token = (await self.do("event.from", [f"task/{task}"], token, 10.0))["token"]
        await self.do("task.destroy", task)
        return record["status"], record["error_info"]


@asynccontextmanager
async def client(pool: Pool) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        yield Client(pool, http)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Pool]:
    folder = tmp_path / "p"
    async with running(folder, Settings()) as pool:
        yield pool
    assert list(folder.iterdir()) == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def xapi(pool: Pool) -> AsyncIterator[Client]:
    async with client(pool) as one:
        await one.login()
        yield one


async def idle(pool: Pool) -> None:
    """All connections have ended, and nothing is attached any more."""
    async with asyncio.timeout(30):
        while (await pool.controls.left())["connections"]:
            await asyncio.sleep(0.01)
    assert (await pool.controls.left())["dom0_vbds"] == []


# ---------------------------------------------------------------------------------------------------------- calls


@pytest.mark.parametrize("step", ["start", "answer"])
@pytest.mark.parametrize(
    ("action", "seen"),
    [
        ("drop", aiohttp.ClientConnectionError),
        ("hang", TimeoutError),
        ("http", aiohttp.ClientResponseError),
        ("garbage", json.JSONDecodeError),
    ],
)
async def test_a_call_is_disturbed_before_it_is_made_or_after(
    pool: Pool, xapi: Client, step: str, action: str, seen: type[Exception]
) -> None:
    """What no client can tell apart."""
    await pool.controls.arm(where="rpc", step=step, action=action, match="VDI.create")
    create = {"SR": (await xapi.do("SR.get_all"))[0], "virtual_size": SIZE}
    create |= {"type": "user", "sharable": False, "read_only": False}
    with pytest.raises(seen):
        await xapi.do("VDI.create", create, timeout=0.5 if action == "hang" else 30.0)
    assert len((await pool.controls.left())["vdis"]) == (1 if step == "answer" else 0)
    await xapi.disk()
    await idle(pool)


async def test_faults_are_counted(pool: Pool, xapi: Client) -> None:
    number = await pool.controls.arm(
        where="rpc", step="start", action="fail", match="VDI.get_*", skip=1, times=2, error=["HANDLE_INVALID", "a", "b"]
    )
    for fails in (False, True, True, False):
        if fails:
            with pytest.raises(RuntimeError, match="HANDLE_INVALID"):
                await xapi.do("VDI.get_all")
        else:
            await xapi.do("VDI.get_all")
    await pool.controls.disarm(number)
    await pool.controls.arm(where="rpc", step="start", action="lose-session", host=1, times=None)
    await xapi.do("VDI.get_all")
    with pytest.raises(RuntimeError, match="SESSION_INVALID"):
        await xapi.do("VDI.get_all", host=1)
    with pytest.raises(RuntimeError, match="SESSION_INVALID"):
        await xapi.do("VDI.get_all")
    assert (await pool.controls.left())["sessions"] == []


def test_impossible_faults_cannot_be_armed() -> None:
    with pytest.raises(ValueError, match="cannot happen"):
        Fault("rpc", "start", "short")
    with pytest.raises(ValueError, match="is none of"):
        Fault("import", "middle", "drop")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("action", "status", "error"),
    [("fail", "failure", "VDI_IO_ERROR"), ("cancel", "cancelled", "TASK_CANCELLED"), ("delay", "success", "")],
)
async def test_asynchronous_calls_fail_in_their_tasks(
    pool: Pool, xapi: Client, action: str, status: str, error: str
) -> None:
    await pool.controls.arm(where="async", step="start", action=action, match="VDI.snapshot", seconds=0.05)
    found, info = await xapi.ended(await xapi.do("Async.VDI.snapshot", await xapi.disk()))
    assert (found, "".join(info[:1])) == (status, error)


async def test_stuck_and_lost_tasks(pool: Pool, xapi: Client) -> None:
    disk = await xapi.disk()
    await pool.controls.arm(where="async", step="start", action="hang", match="VDI.destroy")
    stuck = await xapi.do("Async.VDI.destroy", disk)
    assert (await xapi.do("event.from", [f"task/{stuck}"], "", 0.1))["events"][0]["snapshot"]["status"] == "pending"
    await pool.controls.cancel_task(stuck)
    assert (await xapi.ended(stuck))[0] == "cancelled"
    await pool.controls.arm(where="async", step="start", action="lose-task", match="VDI.destroy")
    lost = await xapi.do("Async.VDI.destroy", disk)
    async with asyncio.timeout(10):
        while (await pool.controls.left())["vdis"]:
            await asyncio.sleep(0.01)
    with pytest.raises(RuntimeError, match="HANDLE_INVALID"):
        await xapi.do("task.get_status", lost)


async def test_a_copy_is_cancelled_and_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "p", Settings(copy_block_s=0.02)) as pool, client(pool) as xapi:
        await xapi.login()
        raw = make_raw(tmp_path / "raw", 64 * MiB, extents=[(0, 64 * MiB)])
        number = await pool.controls.make_vdi((await pool.controls.srs())["shared"], 64 * MiB, str(raw))
        disk = await xapi.do("VDI.get_by_uuid", number)
        task = await xapi.do("Async.VDI.copy", disk, await xapi.do("VDI.get_SR", disk))
        while not await xapi.do("task.get_progress", task):
            await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="OTHER_OPERATION_IN_PROGRESS"):
            await xapi.do("VDI.destroy", disk)
        await xapi.do("task.cancel", task)
        assert await xapi.ended(task) == ("cancelled", ["TASK_CANCELLED", task])
        assert list((await pool.controls.left())["vdis"]) == [number]


async def test_events_wait_for_a_change_and_start_anew_after_a_restart(pool: Pool, xapi: Client) -> None:
    token = (await xapi.do("event.from", ["vdi"], "", 0.1))["token"]
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(xapi.do("event.from", ["vdi"], token, 30.0))
        await asyncio.sleep(0.05)
        disk = await xapi.disk()
    assert [event["ref"] for event in waiting.result()["events"]] == [disk]

    await pool.controls.restart(generation=1)
    token = waiting.result()["token"]
    await xapi.do("VDI.set_name_label", disk, "unseen")
    late = await xapi.do("event.from", ["vdi"], token, 0.1)
    assert (late["events"], late["token"]) == ([], token)
    assert [event["ref"] for event in (await xapi.do("event.from", ["vdi"], "", 1.0))["events"]] == [disk]


# ----------------------------------------------------------------------------------------------------------- hosts


async def test_another_host_becomes_coordinator(pool: Pool, xapi: Client) -> None:
    task = await xapi.do("task.create", "unfinished", "")
    await pool.controls.make_coordinator(1)
    with pytest.raises(RuntimeError, match="HOST_IS_SLAVE"):
        await xapi.login()
    assert await xapi.do("pool.get_master", (await xapi.do("pool.get_all"))[0]) == (await xapi.do("host.get_all"))[1]
    with pytest.raises(RuntimeError, match="HANDLE_INVALID"):
        await xapi.do("task.get_status", task)


async def test_hosts_stop_and_start_again(pool: Pool, xapi: Client) -> None:
    waiting = asyncio.create_task(xapi.do("event.from", ["task"], "", 30.0, host=1))
    await asyncio.sleep(0.05)
    await pool.controls.stop_host(1)
    with pytest.raises(aiohttp.ClientConnectionError):
        await waiting
    with pytest.raises(aiohttp.ClientConnectionError):
        await xapi.do("host.get_all", host=1)
    await pool.controls.start_host(1)
    assert len(await xapi.do("host.get_all", host=1)) == 2
    await pool.controls.restart(1, sessions=False)
    with pytest.raises(RuntimeError, match="SESSION_INVALID"):
        await xapi.do("host.get_all", host=1)


@pytest.mark.parametrize("identity", ["another-host", "stranger"])
async def test_hosts_show_certificates_that_are_not_theirs(pool: Pool, xapi: Client, identity: Any) -> None:
    await pool.controls.show_certificate(1, identity)
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await xapi.do("host.get_all", host=1)
    await pool.controls.show_certificate(1, "own")
    await xapi.do("host.get_all", host=1)


@pytest.mark.parametrize("action", ["drop", "hang"])
async def test_connections_die_young(pool: Pool, xapi: Client, action: str) -> None:
    await pool.controls.arm(where="connect", step="start", action=action)
    with pytest.raises((aiohttp.ClientConnectionError, TimeoutError)):
        await xapi.do("host.get_all", timeout=0.5)
    await xapi.do("host.get_all")
    await idle(pool)


async def test_integers_in_json_may_be_text(pool: Pool, xapi: Client) -> None:
    disk = await xapi.disk()
    assert await xapi.do("VDI.get_virtual_size", disk) == SIZE
    await pool.controls.set_json_numbers(False)
    assert await xapi.do("VDI.get_virtual_size", disk) == str(SIZE)


async def test_what_is_old_is_forgotten(pool: Pool, xapi: Client) -> None:
    done = await xapi.do("Async.VDI.snapshot", await xapi.disk())
    await xapi.do("event.from", [f"task/{done}"], "", 1.0)
    own = await xapi.do("task.create", "never advanced", "")
    await pool.controls.advance(66 * 60)
    with pytest.raises(RuntimeError, match="HANDLE_INVALID"):
        await xapi.do("task.get_status", done)
    await pool.controls.advance(23.5 * 3600)
    with pytest.raises(RuntimeError, match="HANDLE_INVALID"):
        await xapi.do("task.get_status", own)
    await pool.controls.advance(25 * 3600)
    with pytest.raises(RuntimeError, match="SESSION_INVALID"):
        await xapi.do("host.get_all")


# ------------------------------------------------------------------------------------------------------- transfers


@pytest.mark.parametrize("line", [UP, DOWN])
@pytest.mark.parametrize("step", ["attach", "body", "end"])
@pytest.mark.parametrize(
    ("action", "status", "error"),
    [
        ("drop", "failure", "VDI_IO_ERROR"),
        ("fail", "failure", "SR_BACKEND_FAILURE_44"),
        ("cancel", "cancelled", "TASK_CANCELLED"),
        ("delay", "success", ""),
    ],
)
async def test_transfers_are_disturbed_at_each_step(
    pool: Pool, xapi: Client, line: str, step: str, action: str, status: str, error: str
) -> None:
    disk, task = await xapi.disk(), await xapi.do("task.create", "transfer", "")
    where = "import" if line is UP else "export"
    told = {"where": where, "step": step, "action": action, "seconds": 0.01, "at_byte": 3 * MiB + 1}
    await pool.controls.arm(**told, error=["SR_BACKEND_FAILURE_44", "", "", ""])
    body = b"x" * SIZE if line is UP else b""
    try:
        seen, count = await xapi.exchange(line.format(vdi=disk, task=task), body)
    except (ConnectionError, asyncio.IncompleteReadError):
        assert action != "delay"
    else:
        whole = action == "delay" or step == "end"
        expected = 0 if line is UP else SIZE if whole else {"attach": 0, "body": 3 * MiB + 1}[step]
        assert seen == 200
        assert count == expected if action != "drop" else count <= expected
    found, info = await xapi.ended(task)
    assert (found, "".join(info[:1])) == (status, error)
    await idle(pool)
    if line is UP and step == "body" and action != "delay":
        taken = (await pool.controls.transfers())[0]["body"]
        assert taken == 3 * MiB + 1


@pytest.mark.parametrize("line", [UP, DOWN])
@pytest.mark.parametrize(("action", "seen"), [("http", 401), ("redirect", 302), ("drop", None), ("hang", None)])
async def test_transfers_are_refused_before_they_begin(
    pool: Pool, xapi: Client, line: str, action: str, seen: int | None
) -> None:
    disk, task = await xapi.disk(), await xapi.do("task.create", "transfer", "")
    where = "import" if line is UP else "export"
    await pool.controls.arm(where=where, step="head", action=action, match=disk, status=401, to="192.0.2.1")
    try:
        async with asyncio.timeout(0.5):
            status, _ = await xapi.exchange(line.format(vdi=disk, task=task))
        assert status == seen
    except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
        assert seen is None
    assert await xapi.do("task.get_status", task) == "pending"
    if action == "redirect":
        assert (await pool.controls.transfers())[0]["address"] == "192.0.2.1"
    assert (await xapi.exchange(line.format(vdi=disk, task=task)))[0] == 200
    await xapi.ended(task)
    await idle(pool)


@pytest.mark.parametrize(("action", "status"), [("silent-end", "pending"), ("false-success", "success")])
async def test_exports_end_early_and_look_well(pool: Pool, xapi: Client, action: str, status: str) -> None:
    disk, task = await xapi.disk(), await xapi.do("task.create", "transfer", "")
    await pool.controls.arm(where="export", step="body", action=action, at_byte=MiB)
    assert await xapi.exchange(DOWN.format(vdi=disk, task=task)) == (200, MiB)
    assert await xapi.do("task.get_status", task) == status
    await idle(pool)


@pytest.mark.parametrize("line", [UP, DOWN])
async def test_hosts_that_stop_in_the_middle(pool: Pool, xapi: Client, line: str) -> None:
    disk, task = await xapi.disk(), await xapi.do("task.create", "transfer", "")
    where = "import" if line is UP else "export"
    await pool.controls.arm(where=where, step="body", action="hang", at_byte=MiB, seconds=0.2)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await xapi.exchange(line.format(vdi=disk, task=task), b"x" * SIZE if line is UP else b"")
    assert await xapi.ended(task) == ("failure", ["VDI_IO_ERROR", "Device I/O errors"])
    await idle(pool)


async def test_a_task_is_lost_while_its_transfer_goes_on(pool: Pool, xapi: Client) -> None:
    disk, task = await xapi.disk(), await xapi.do("task.create", "transfer", "")
    await pool.controls.arm(where="import", step="body", action="lose-task", at_byte=MiB)
    assert await xapi.exchange(UP.format(vdi=disk, task=task), b"x" * SIZE) == (200, 0)
    with pytest.raises(RuntimeError, match="HANDLE_INVALID"):
        await xapi.do("task.get_status", task)
    saved = pool.world.storage.disks[disk]
    assert saved.read(0, SIZE) == b"x" * SIZE


async def test_a_host_lies_about_the_end_of_a_disk(pool: Pool, xapi: Client) -> None:
    disk, task = await xapi.disk(), await xapi.do("task.create", "transfer", "")
    await pool.controls.arm(where="import", step="attach", action="short", at_byte=512)
    await xapi.exchange(UP.format(vdi=disk, task=task), b"x" * SIZE)
    assert (await xapi.ended(task))[0] == "success"
    assert pool.world.storage.disks[disk].read(0, SIZE) == b"x" * (SIZE - 512) + bytes(512)


async def test_a_disk_stays_attached_to_dom0(pool: Pool, xapi: Client) -> None:
    disk, task = await xapi.disk(), await xapi.do("task.create", "transfer", "")
    await pool.controls.arm(where="import", step="attach", action="leave-plugged")
    await xapi.exchange(UP.format(vdi=disk, task=task), b"x" * SIZE)
    assert (await xapi.ended(task))[0] == "success"
    [vbd] = (await pool.controls.left())["dom0_vbds"]
    with pytest.raises(RuntimeError, match="VDI_IN_USE"):
        await xapi.do("VDI.destroy", disk)
    await xapi.do("VBD.unplug", vbd)
    await xapi.do("VBD.destroy", vbd)
    await xapi.do("VDI.destroy", disk)


async def test_clients_that_leave_fail_their_tasks(pool: Pool, xapi: Client) -> None:
    disk = await xapi.disk()
    for line, told in ((UP, 2 * SIZE), (DOWN, 0)):
        task = await xapi.do("task.create", "transfer", "")
        port = int(pool.access.urls[0].rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=xapi.trust, limit=64 * 1024)
        head = f"Cookie: session_id={xapi.session}\r\nContent-Length: {told}\r\n\r\n"
        writer.write(f"{line.format(vdi=disk, task=task)}\r\n{head}".encode())
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        assert await xapi.ended(task) == ("failure", ["VDI_IO_ERROR", "Device I/O errors"])
        await idle(pool)


async def test_a_disk_takes_one_writer_and_a_repository_what_it_has_room_for(pool: Pool, xapi: Client) -> None:
    disk, task = await xapi.disk(), await xapi.do("task.create", "transfer", "")
    await pool.controls.arm(where="import", step="body", action="delay", at_byte=MiB, seconds=0.3)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(xapi.exchange(UP.format(vdi=disk, task=task), b"x" * SIZE))
        while not (await pool.controls.left())["dom0_vbds"]:
            await asyncio.sleep(0.01)
        for line in (UP, DOWN):
            other = await xapi.do("task.create", "too many", "")
            assert (await xapi.exchange(line.format(vdi=disk, task=other)))[0] == 200
            assert await xapi.ended(other) == ("failure", ["VDI_IN_USE", disk, "attach"])
    assert first.result() == (200, 0)
    assert (await xapi.ended(task))[0] == "success"

    second, task = await xapi.disk(), await xapi.do("task.create", "transfer", "")
    await pool.controls.set_room((await pool.controls.srs())["shared"], 4 * MiB)
    await xapi.exchange(UP.format(vdi=second, task=task), b"x" * SIZE)
    assert (await xapi.ended(task))[1][0] == "SR_BACKEND_FAILURE_44"
    await idle(pool)


async def test_the_answer_is_there_before_the_body_is_read(pool: Pool, xapi: Client) -> None:
    disk, task = await xapi.disk(), await xapi.do("task.create", "transfer", "")
    assert await xapi.exchange(UP.format(vdi=disk, task=task), b"x" * SIZE) == (200, 0)  # waits for it before sending
    transfer = (await pool.controls.transfers())[0]
    assert (transfer["body"], transfer["credential"], transfer["task"]) == (SIZE, "cookie", task)
    assert (await xapi.ended(task))[0] == "success"
