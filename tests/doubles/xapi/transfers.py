"""/import_raw_vdi and /export_raw_vdi."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.doubles.xapi import vhd
from tests.doubles.xapi.admission import Admission, Direction, Refused
from tests.doubles.xapi.bodies import BadBody, Incoming, Outgoing, Trip
from tests.doubles.xapi.disks import BLOCK, Disk
from tests.doubles.xapi.errors import Dropped, Failure, io_error
from tests.doubles.xapi.faults import Fault, Step
from tests.doubles.xapi.http import Request, head, page, stalled
from tests.doubles.xapi.world import Transfer, World

IMPORT, EXPORT = "/import_raw_vdi", "/export_raw_vdi"
_MEDIA = {"raw": "application/octet-stream", "vhd": "application/vhd", "qcow2": "application/x-qemu-disk"}


@dataclass(frozen=True)
class Connection:
    """`local`: dom0's socket, where everybody is root."""

    host: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    local: bool

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


class _Ended(Exception):
    """The connection ends, and nothing is said of the task any more."""


class DataHandlers:
    """One for the pool; each transfer leaves a `Transfer` in the world's list."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._db = world.db
        self._admission = Admission(world)

    async def handle(self, connection: Connection, request: Request) -> None:
        """The connection is to be closed afterwards, whatever came of it."""
        where: Direction = "import" if request.path == IMPORT else "export"
        transfer = Transfer(where, connection.host)
        self._world.transfers.append(transfer)
        try:
            await self._transfer(where, connection, request, transfer)
        except Refused as refused:
            transfer.status = refused.status
            task = request.cookie_first("task_id")
            if refused.failure is not None and task is not None:
                self._world.tasks.fail(task, refused.failure)
            await connection.send(page(refused.status, refused.text, **refused.headers))
        except _Ended:
            return

    async def _transfer(self, where: Direction, connection: Connection, request: Request, transfer: Transfer) -> None:
        transfer.credential = self._admission.authenticated(request, local=connection.local)
        vdi, sr = self._admission.target(where, request)
        transfer.vdi = self._db.field("VDI", vdi, "uuid") if vdi else ""
        fault = self._hit(where, "head", connection, vdi, transfer)
        if fault is not None:
            await self._refuse_by(fault, connection, request, transfer)
        if not self._world.sees(connection.host, sr):
            hosts = self._world.storage.hosts_of(sr)
            if not hosts:
                raise Refused(500, "no host sees the SR", Failure("SR_NO_PBDS", sr))
            await self._redirect(self._db.field("host", hosts[0], "address"), connection, request, transfer)
        file_format, chunked = self._admission.file_format(where, request)
        transfer.format = file_format + (" chunked" if chunked else "")
        if vdi == "":
            vdi = self._admission.made(sr, file_format, request)
            transfer.vdi = self._db.field("VDI", vdi, "uuid")
        task = self._admission.task(where, connection.host, request)
        transfer.task, transfer.status = task, 200
        if where == "import" and "answer-late" in self._world.settings.lies:
            while await connection.reader.read(BLOCK):
                pass
        told = {"Connection": "close", "Cache-Control": "no-cache, no-store", "task-id": task}
        told["content-type"] = _MEDIA[file_format]
        if where == "export":
            told["content-disposition"] = f'attachment; filename="{transfer.vdi}.{file_format}"'
        await connection.send(head(200, told))
        created = vdi if "vdi" not in request.query | request.cookies else ""
        try:
            await self._run(where, connection, request, transfer, vdi)
        except Failure as failure:
            self._world.tasks.fail(task, failure)
        except (BadBody, vhd.BadVhd, ValueError, ConnectionError, subprocess.CalledProcessError):
            self._world.tasks.fail(task, io_error())
        else:
            self._world.tasks.succeed(task, created)

    async def _redirect(self, address: str, connection: Connection, request: Request, transfer: Transfer) -> None:
        """And the connection is closed with the body unread: where some of it has come, that is a reset."""
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in request.query.items())
        location = f"https://{address}{request.path}?{query}"
        transfer.status, transfer.address = 302, address
        await connection.send(page(302, "elsewhere", location=location))
        raise _Ended

    # ---------------------------------------------------------------------------------------------------- faults

    def _hit(self, where: Direction, step: Step, connection: Connection, vdi: str, transfer: Transfer) -> Fault | None:
        return self._world.faults.hit(where, step, connection.host, vdi, transfer.vdi)

    async def _refuse_by(self, fault: Fault, connection: Connection, request: Request, transfer: Transfer) -> None:
        """Before the head of the answer."""
        if fault.action == "delay":
            await asyncio.sleep(fault.seconds)
        elif fault.action == "http":
            raise Refused(fault.status, "as told")
        elif fault.action == "redirect":
            await self._redirect(fault.to, connection, request, transfer)
        else:
            await self._cut(fault, connection)

    async def _disturb(self, fault: Fault | None, connection: Connection, task: str) -> None:
        """After the head of the answer."""
        if fault is None:
            return
        if fault.action == "delay":
            await asyncio.sleep(fault.seconds)
        elif fault.action == "lose-task":
            self._world.tasks.lose(task)
        elif fault.action == "fail":
            raise Failure(*fault.error)
        elif fault.action == "cancel":
            raise Failure("TASK_CANCELLED", task)
        elif fault.action == "silent-end":
            raise _Ended
        elif fault.action == "false-success":
            self._world.tasks.succeed(task)
            raise _Ended
        elif fault.action in ("drop", "hang"):
            try:
                await self._cut(fault, connection)
            finally:
                self._world.tasks.fail(task, io_error())

    async def _cut(self, fault: Fault, connection: Connection) -> None:
        if fault.action == "hang":
            await stalled(connection.reader, connection.writer, fault.seconds)
        raise Dropped

    # -------------------------------------------------------------------------------------------------- the body

    async def _run(
        self, where: Direction, connection: Connection, request: Request, transfer: Transfer, vdi: str
    ) -> None:
        """From the moment that 200 was said."""
        task, host = transfer.task, self._world.hosts[connection.host]
        fault = self._hit(where, "attach", connection, vdi, transfer)
        short = fault.at_byte if fault is not None and fault.action == "short" else 0
        leave = fault is not None and fault.action == "leave-plugged"
        await self._disturb(fault, connection, task)
        await asyncio.sleep(self._world.settings.attach_s)
        if self._db.field("VDI", vdi, "type") == "cbt_metadata":
            raise Failure("VDI_INCOMPATIBLE_TYPE", vdi, "cbt_metadata")
        mode = "RW" if where == "import" else "RO"
        with self._world.storage.in_dom0(vdi, host, mode, task=task, leave=leave) as disk:
            disk.short_by = short
            trip = self._trip(self._hit(where, "body", connection, vdi, transfer), connection, task)
            try:
                if where == "import":
                    await self._receive(
                        Incoming(connection.reader, request.content_length, trip), request, transfer, vdi
                    )
                else:
                    await self._send(Outgoing(connection.writer, trip), request, transfer, vdi)
            finally:
                disk.short_by = 0
            await self._disturb(self._hit(where, "end", connection, vdi, transfer), connection, task)

    def _trip(self, fault: Fault | None, connection: Connection, task: str) -> Trip | None:
        return None if fault is None else Trip(fault.at_byte, lambda: self._disturb(fault, connection, task))

    async def _receive(self, body: Incoming, request: Request, transfer: Transfer, vdi: str) -> None:
        disk = self._world.storage.disks[vdi]
        write = self._writer(vdi, disk, transfer, body)
        sr = self._db.field("VDI", vdi, "SR")
        try:
            if transfer.format == "vhd":
                if self._is_raw_lvm(vdi):
                    raise Failure("INTERNAL_ERROR", "unimplemented: prezeroed")
                await vhd.receive(body.exactly, write, length=request.content_length)
            elif transfer.format == "raw chunked":
                if (request.content_length or 0) > disk.size and "length-believed" in self._world.settings.lies:
                    raise BadBody(f"{request.content_length} bytes do not fit into {disk.size}")
                async for offset, data in body.frames():
                    write(offset, data)
            elif transfer.format == "qcow2":
                await self._receive_qcow2(body, write, request)
            else:
                total = disk.size if request.content_length is None else request.content_length
                for offset in range(0, total, BLOCK):
                    write(offset, await body.exactly(min(BLOCK, total - offset)))
        finally:
            transfer.body = body.taken
            self._world.storage.account(sr)

    def _writer(
        self, vdi: str, disk: Disk, transfer: Transfer, body: Incoming
    ) -> Callable[[int, bytes | memoryview], None]:
        charge = self._world.storage.charge(self._db.field("VDI", vdi, "SR"))

        def write(offset: int, data: bytes | memoryview) -> None:
            disk.write(min(offset, disk.size), memoryview(data)[: max(0, disk.size - offset)], charge)
            if offset + len(data) > disk.size and "beyond-taken" not in self._world.settings.lies:
                raise BadBody(f"{len(data)} bytes at {offset} of a disk of {disk.size}")
            transfer.body = body.taken
            self._world.tasks.progress(transfer.task, int(100 * (offset + len(data)) / (disk.size + 1)) / 100)

        return write

    def _is_raw_lvm(self, vdi: str) -> bool:
        config: dict[str, str] = self._db.field("VDI", vdi, "sm_config")
        return config.get("type") == "raw"

    async def _receive_qcow2(self, body: Incoming, write: Callable[[int, bytes], None], request: Request) -> None:
        """By way of files, as hosts' own tool needs no more than the result."""
        folder = Path(tempfile.mkdtemp(prefix="qcow2-", dir=self._world.folder))
        try:
            with (folder / "in.qcow2").open("wb") as file:
                while request.content_length is None or body.taken < request.content_length:
                    data = await body.some(BLOCK)
                    if not data:
                        break
                    file.write(data)
            await _qemu_img("convert", "-f", "qcow2", "-O", "raw", str(folder / "in.qcow2"), str(folder / "in.raw"))
            with (folder / "in.raw").open("rb") as file:
                offset = 0
                while data := file.read(BLOCK):
                    if data.strip(b"\0"):
                        write(offset, data)
                    offset += len(data)
        finally:
            shutil.rmtree(folder)

    async def _send(self, body: Outgoing, request: Request, transfer: Transfer, vdi: str) -> None:
        disk = self._world.storage.disks[vdi]
        base = request.query_first("base")
        try:
            if base is not None:
                base = base if self._db.has("VDI", base) else self._db.by_uuid("VDI", base)
                transfer.base = self._db.field("VDI", base, "uuid")
            if transfer.format == "vhd":
                plan = self._plan(vdi, disk, base)
                for piece in plan.pieces(disk):
                    await body.send(piece)
                    self._world.tasks.progress(transfer.task, int(100 * body.sent / (plan.size + 1)) / 100)
            elif transfer.format == "qcow2":
                await self._send_qcow2(body, disk)
            else:
                for offset in range(0, disk.size, BLOCK):
                    await body.send(disk.read(offset, min(BLOCK, disk.size - offset)))
                    self._world.tasks.progress(transfer.task, int(100 * offset / disk.size) / 100)
        finally:
            transfer.body = body.sent

    def _plan(self, vdi: str, disk: Disk, base: str | None) -> vhd.Plan:
        record = self._db.get("VDI", vdi)
        if disk.size > vhd.LARGEST:
            raise Failure("VDI_TOO_LARGE", vdi, str(vhd.LARGEST))
        if base is None:
            return vhd.planned(disk.size, disk.allocated(), uuid.UUID(record["uuid"]), None)
        below = self._world.storage.disks[base]
        if below.nodes is not disk.nodes or not self._world.storage.kind(record["SR"]).vhd:
            raise BadBody("these two are not of one chain")
        number = self._db.field("VDI", base, "uuid")
        sr = self._db.field("SR", record["SR"], "uuid")
        parent = vhd.Parent(uuid.UUID(number), f"/var/run/sr-mount/{sr}/{number}.vhd")
        changed = disk.changed_since(below)
        if "delta-all" in self._world.settings.lies:
            changed = disk.allocated()
        if "delta-short" in self._world.settings.lies:
            changed = changed[1:]
        return vhd.planned(disk.size, changed, uuid.UUID(record["uuid"]), parent)

    async def _send_qcow2(self, body: Outgoing, disk: Disk) -> None:
        folder = Path(tempfile.mkdtemp(prefix="qcow2-", dir=self._world.folder))
        try:
            await asyncio.to_thread(disk.flatten, folder / "out.raw")
            await _qemu_img("convert", "-f", "raw", "-O", "qcow2", str(folder / "out.raw"), str(folder / "out.qcow2"))
            with (folder / "out.qcow2").open("rb") as file:
                while data := file.read(BLOCK):
                    await body.send(data)
        finally:
            shutil.rmtree(folder)


async def _qemu_img(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec("qemu-img", *arguments, stdin=subprocess.DEVNULL)
    if await process.wait():
        raise subprocess.CalledProcessError(process.returncode or 1, "qemu-img")
