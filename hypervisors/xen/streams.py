"""Whole disks into and out of a pool: PUT /import_raw_vdi and GET /export_raw_vdi.

Source of their ways: import_raw_vdi.ml, export_raw_vdi.ml and importexport.ml of xen-api. What counts is the task, which is
ours: neither a status of 200, which comes before the first byte, nor the end of the connection says that it went well.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal
from urllib.parse import urlencode, urlsplit

import structlog

from hypervisors.xen.errors import HANDLE_INVALID, XapiFailure, XapiRefused, failure
from hypervisors.xen.events import TaskWaiter
from hypervisors.xen.hosts import Host, Trust, known
from hypervisors.xen.session import PoolClient
from hypervisors.xen.wire import Exchange, HostEnded, Patience, connect
from stores.contract import MiB
from stores.errors import IntegrityError, StorageError, Unavailable
from stores.transfer.wire import Answer
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)

Format = Literal["raw", "vhd"]
_IMPORT, _EXPORT = "/import_raw_vdi", "/export_raw_vdi"
_MOST_REDIRECTS = 3


@dataclass
class _Transfer:
    task: str = ""
    """Empty before it is made."""
    running: bool = False
    """Whether a host may be at work on it: from its 200 on."""


class Incoming:
    """What a host sends of a disk."""

    def __init__(self, exchange: Exchange, outcome: Callable[[], Awaitable[None]]) -> None:
        """`outcome`: raises what the task failed with."""
        self._exchange = exchange
        self._outcome = outcome

    async def fill(self, view: memoryview, look: Callable[[memoryview], None] = lambda seen: None) -> int:
        """Fills `view` with the next bytes, and has `look` see them, in the same thread. Returns its length, or less at the
        end, and then the host says that all of it was sent: a connection that ends early, as well as whatever the task
        failed with, is raised. When cancelled, nobody writes into `view` any more. Not to be called after the end."""
        try:
            count = await self._exchange.run(partial(self._filled, view, look))
        except HostEnded as broken:
            await self._outcome()
            host = self._exchange.host
            raise Unavailable(f"host {host} broke the connection and says that all is well", host=str(host)) from broken
        if count < len(view):
            await self._outcome()
        return count

    def _filled(self, view: memoryview, look: Callable[[memoryview], None]) -> int:
        count = self._exchange.receive(view)
        look(view[:count])
        return count


async def _pieces(content: Incoming) -> AsyncGenerator[bytes, None]:
    buffer = memoryview(bytearray(MiB))
    count = len(buffer)
    while count == len(buffer):
        count = await content.fill(buffer)
        if count:
            yield bytes(buffer[:count])


class DiskStreams:
    """Both ways for one pool. Disks are named by reference or uuid. Nothing is kept in memory but the piece at hand."""

    def __init__(
        self,
        client: PoolClient,
        tasks: TaskWaiter,
        trust: Trust,
        *,
        label: str,
        patience: Patience | None = None,
        grace_s: float = 60.0,
    ) -> None:
        """`label`: the tasks' name, of this process alone, by which those that a crash left are found. `grace_s`: how long a
        task may go on when its connection has ended; cleaning up after a transfer takes twice as long at most."""
        self._client = client
        self._tasks = tasks
        self._trust = trust
        self._label = label
        self._patience = patience or Patience()
        self._grace_s = grace_s
        self._numbers = itertools.count(1)

    async def upload(
        self,
        vdi: str,
        body: AsyncIterator[bytes | bytearray | memoryview],
        *,
        image_format: Format,
        chunked: bool = False,
        length: int | None = None,
        host: Host | None = None,
    ) -> None:
        """As `sending`, of a body that comes in order. Its pieces may be overwritten when the next is asked for; none is asked
        for before the host has agreed to take it."""
        async with self.sending(vdi, image_format=image_format, chunked=chunked, length=length, host=host) as exchange:
            async for piece in body:
                await exchange.send(piece)

    @asynccontextmanager
    async def sending(
        self,
        vdi: str,
        *,
        image_format: Format,
        chunked: bool = False,
        length: int | None = None,
        host: Host | None = None,
    ) -> AsyncIterator[Exchange]:
        """What takes a body that is written into `vdi`, which is large enough; when the context has ended, the host says that
        all of it is written.

        `length` in bytes is needed for vhd. For `chunked`, whose body tells its own end, it may be left out, or be more than
        there is. `host` sees the disk's SR; others send us there. `HostEnded` is to be let through: it is the host's own
        reason that is raised. After an error, or when cancelled, the content of `vdi` is undefined.

        `XapiFailure` and its kin for what the task failed with. `Unavailable` where a host was silent or broke the
        connection, `IntegrityError` where it claims success and has not taken everything, or the body is not `length` long
        where it has to be.
        """
        query = {"vdi": vdi, "format": image_format} | ({"chunked": "true"} if chunked else {})
        headers = {} if length is None else {"Content-Length": str(length)}
        async with self._transfer() as transfer:
            exchange = await self._agreed("PUT", _IMPORT, query, headers, transfer, host)
            complete = False
            try:
                yield exchange
                await self._ended(exchange, None if chunked else length)
                complete = True
            except HostEnded:
                pass  # the task knows why
            finally:
                await exchange.close()
            await self._outcome(transfer, exchange.host)
            if not complete:
                raise IntegrityError(
                    f"host {exchange.host} says that {vdi} is written, and has not taken all of it", vdi=vdi
                )

    async def _ended(self, exchange: Exchange, length: int | None) -> None:
        """All of the body was sent."""
        sent = exchange.sent
        if length is not None and sent != length:  # the host would wait for the rest, or has left something unread
            raise IntegrityError(f"the source has {sent} bytes, and {length} were announced", needed=length, seen=sent)
        try:
            await exchange.end()
        except HostEnded:
            _log.info("xapi connection broken after the last byte", host=str(exchange.host))  # the task knows more

    @asynccontextmanager
    async def download(
        self,
        vdi: str,
        *,
        image_format: Format,
        base: str | None = None,
        host: Host | None = None,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """As `receiving`, in pieces of at most 1 MiB."""
        async with (
            self.receiving(vdi, image_format=image_format, base=base, host=host) as content,
            aclosing(_pieces(content)) as pieces,
        ):
            yield pieces

    @asynccontextmanager
    async def receiving(
        self,
        vdi: str,
        *,
        image_format: Format,
        base: str | None = None,
        host: Host | None = None,
    ) -> AsyncIterator[Incoming]:
        """The bytes of `vdi` in order. `base`: an earlier snapshot of the same disk; what comes is a differencing VHD of what
        changed since. Leaving the context before the end gives the transfer up.

        XAPI does not announce a length: whoever reads raw compares it with the disk's size, whoever reads VHD looks for the
        footer at its end.
        """
        query = {"vdi": vdi, "format": image_format} | ({"base": base} if base is not None else {})
        async with self._transfer() as transfer:
            exchange = await self._agreed("GET", _EXPORT, query, {}, transfer, host)
            try:
                yield Incoming(exchange, partial(self._outcome, transfer, exchange.host))
            finally:
                await exchange.close()

    async def _outcome(self, transfer: _Transfer, host: Host) -> None:
        """The connection has ended: what the task says of it."""
        try:
            async with asyncio.timeout(self._grace_s):
                await self._tasks.result(transfer.task)
        except TimeoutError as error:
            transfer.running = False  # it has been waited for
            raise Unavailable(
                f"host {host} ended the transfer {self._grace_s:g} s ago, and its task goes on: XAPI is stuck",
                host=str(host),
                task=transfer.task,
            ) from error

    # ------------------------------------------------------------------------------------------------ before the body

    async def _agreed(
        self,
        verb: str,
        path: str,
        query: dict[str, str],
        headers: dict[str, str],
        transfer: _Transfer,
        host: Host | None,
    ) -> Exchange:
        """A connection to a host that has said 200."""
        session = await self._client.session()
        target = host or session.host
        may_log_in = True
        for _ in range(_MOST_REDIRECTS + 2):
            # In a cookie, because queries are logged.
            cookie = f"session_id={session.ref.reveal()}; task_id={transfer.task}"
            told = {"Host": str(target), "Connection": "close", "Cookie": cookie, **headers}
            exchange, head = await self._asked(target, f"{verb} {path}?{urlencode(query)} HTTP/1.0", told)
            if head.status == 200:
                transfer.running = True
                return exchange
            await exchange.close()
            if head.status == 302:
                target = self._elsewhere(target, head)
            elif head.status == 401 and may_log_in:
                may_log_in = False
                session = await self._client.session(instead_of=session)
            else:
                raise await self._refusal(target, head, transfer)
        raise Unavailable(f"hosts of the pool send each other's clients in a circle, last {target}", host=str(target))

    async def _asked(self, host: Host, line: str, headers: dict[str, str]) -> tuple[Exchange, Answer]:
        exchange = await connect(host, self._trust, self._patience)
        try:
            return exchange, await exchange.ask(line, headers)
        except BaseException:
            await exchange.close()
            raise

    def _elsewhere(self, host: Host, head: Answer) -> Host:
        """The session goes to nobody but the configured hosts."""
        location = head.headers.get("location", "")
        address = urlsplit(location).netloc
        found = known(address, self._client.hosts) if location.startswith("https://") else None
        if found is None:
            raise XapiRefused(
                f"host {host} sends us to {address or 'nowhere'}, which is not among the configured hosts; add it",
                code="REDIRECT",
                params=[address],
            )
        return found

    async def _refusal(self, host: Host, head: Answer, transfer: _Transfer) -> StorageError:
        """What the task says, if it says anything."""
        record = await self._client.call("task.get_record", transfer.task)
        if record["status"] == "failure":
            code, *params = record["error_info"]
            return failure(code, params, doing=f"host {host} refuses the transfer")
        message = f"host {host} refuses the transfer with HTTP {head.status}"
        if head.status >= 500:
            return Unavailable(message, host=str(host), status=head.status)
        sort = XapiRefused if head.status in (401, 403) else XapiFailure
        return sort(message, code=f"HTTP_{head.status}", params=[])

    # ----------------------------------------------------------------------------------------------------- the task

    @asynccontextmanager
    async def _transfer(self) -> AsyncIterator[_Transfer]:
        """With a task of ours, which is gone afterwards whatever happened, and so is what the host did for it."""
        transfer = _Transfer()
        try:
            await uninterrupted(self._begin(transfer))  # one that was made without our knowing would stay for a day
            yield transfer
        finally:
            # Also when cancelled, and then to its end: else the host would keep the disk attached behind our back.
            if transfer.task:
                await uninterrupted(self._discard(transfer))

    async def _begin(self, transfer: _Transfer) -> None:
        number = str(next(self._numbers))
        try:
            made = await self._client.call("task.create", self._label, number, timeout_s=2 * self._grace_s)
        except Unavailable:
            made = await self._lost(number)
            if made is None:
                raise
        transfer.task = str(made)

    async def _lost(self, number: str) -> str | None:
        """The task that was made although nobody said so."""
        for task, record in (await self._client.call("task.get_all_records")).items():
            if (record["name_label"], record["name_description"]) == (self._label, number):
                return str(task)
        return None

    async def _discard(self, transfer: _Transfer) -> None:
        task = transfer.task
        try:
            async with asyncio.timeout(2 * self._grace_s):
                if await self._client.call("task.get_status", task) == "pending":
                    await self._give_up(transfer)
                await self._client.call("task.destroy", task)
        except (StorageError, TimeoutError) as problem:
            if not isinstance(problem, XapiFailure) or problem.code != HANDLE_INVALID:
                _log.warning("xapi task left behind", task=task, error=str(problem))  # XAPI removes it after a day

    async def _give_up(self, transfer: _Transfer) -> None:
        """Our connection is closed, and a host that was at work notices; what never began nobody else ends."""
        if transfer.running:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._grace_s):
                    await self._tasks.ended(transfer.task)
                    return
        await self._client.call("task.set_status", transfer.task, "cancelled")
