"""The connection to libvirt: made when it is first needed, made anew when it broke, and told of what happens to machines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, TypeVar

from hypervisors.contract import HandlerError
from hypervisors.kvm.libvirt_calls import in_thread, library
from stores.errors import Unavailable
from stores.uninterrupted import uninterrupted

T = TypeVar("T")

CALL_S = 120.0
"""For one call. libvirt itself waits 30 s for its turn at a machine, and a probe of a new qemu takes a minute when busy."""

PATIENCE_S = 30.0
"""How long a libvirtd that went away is waited for, in the middle of something. It needs 4 s to come back."""

_PAUSE_S = 0.5

_KEEPALIVE = (5, 6)
"""Seconds between questions whether libvirtd is alive, and how many in a row it may leave open."""

_PER_MACHINE = ("DEVICE_REMOVED", "DEVICE_REMOVAL_FAILED", "LIFECYCLE")
"""Events (virDomainEventID) at which somebody may have to look at a machine again."""


class LibvirtFailure(HandlerError):
    """libvirt refused a call, or could not do it: details carry `code`, libvirt's number for it (virterror.h)."""

    @property
    def code(self) -> int:
        return int(str(self.details["code"]))


class Disconnected(Unavailable):
    """libvirtd is not there, or went away in the middle of a call: nobody knows what it did before."""


class Libvirt:
    """One connection, for many tasks. Opens nothing by itself."""

    def __init__(self, uri: str, *, call_s: float = CALL_S, patience_s: float = PATIENCE_S) -> None:
        self.uri = uri
        self._call_s = call_s
        self._patience_s = patience_s
        self._opening = asyncio.Lock()
        self._connection: Any = None
        self._was_there = False
        self._callbacks: list[int] = []
        self._watchers: set[asyncio.Event] = set()

    async def call(self, doing: str, work: Callable[[Any], T]) -> T:
        """What `work` returns, which gets the connection (virConnect), in a thread. `doing` is for messages: "attaching X".

        `LibvirtFailure`, `Disconnected`, or `Unavailable` when it takes too long.
        """
        connection = await self._connected()
        libvirt = library()

        def guarded() -> T:
            try:
                return work(connection)
            except libvirt.libvirtError as error:
                raise self._failure(libvirt, connection, doing, error) from error

        try:
            return await in_thread(guarded, doing=doing, within_s=self._call_s)
        except Unavailable:
            await self._drop(connection)
            raise

    async def surely(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` returns, which looks before it acts, and so can be done again after a connection broke. A libvirtd that
        never was there is not waited for."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience_s
        while True:
            try:
                return await work()
            except Disconnected:
                if not self._was_there or loop.time() + _PAUSE_S >= until:
                    raise
                await asyncio.sleep(_PAUSE_S)

    @contextmanager
    def watching(self) -> Iterator[asyncio.Event]:
        """Set whenever something happened to any machine, or to the connection."""
        event = asyncio.Event()
        self._watchers.add(event)
        try:
            yield event
        finally:
            self._watchers.discard(event)

    async def aclose(self) -> None:
        """Idempotent."""
        await uninterrupted(self._drop(self._connection))

    async def _connected(self) -> Any:
        async with self._opening:
            if self._connection is None:
                await uninterrupted(self._open())
            return self._connection

    async def _open(self) -> None:
        libvirt, loop = library(), asyncio.get_running_loop()
        doing = f"connecting to {self.uri}"

        def changed(*_told: object) -> None:  # in libvirt's own thread
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._happened)

        def opened() -> Any:
            try:
                connection = libvirt.open(self.uri)
            except libvirt.libvirtError as error:
                raise Disconnected(
                    f"there is no libvirt at {self.uri}: {error.get_error_message()}; start libvirtd, or correct"
                    " kvm.libvirt_uri",
                    code=error.get_error_code(),
                ) from error
            connection.setKeepAlive(*_KEEPALIVE)
            connection.registerCloseCallback(changed, None)
            events = [getattr(libvirt, f"VIR_DOMAIN_EVENT_ID_{name}") for name in _PER_MACHINE]
            return connection, [connection.domainEventRegisterAny(None, event, changed, None) for event in events]

        self._connection, self._callbacks = await in_thread(opened, doing=doing, within_s=self._call_s)
        self._was_there = True

    async def _drop(self, connection: Any) -> None:
        if connection is None or self._connection is not connection:
            return  # somebody else has
        self._connection = None
        self._happened()
        libvirt, callbacks = library(), self._callbacks

        def close() -> None:
            with suppress(libvirt.libvirtError):  # of a broken one
                connection.unregisterCloseCallback()
            for callback in callbacks:
                with suppress(libvirt.libvirtError):
                    connection.domainEventDeregisterAny(callback)
            with suppress(libvirt.libvirtError):
                connection.close()

        with suppress(Unavailable):  # it is given up
            await in_thread(close, doing="closing the connection", within_s=self._call_s)

    def _happened(self) -> None:
        for event in self._watchers:
            event.set()

    def _failure(self, libvirt: ModuleType, connection: Any, doing: str, error: Any) -> Exception:
        """In the thread of the call."""
        said, code = error.get_error_message() or str(error), error.get_error_code() or 0
        alive = False
        with suppress(libvirt.libvirtError):
            alive = connection.isAlive() == 1
        if not alive:
            return Disconnected(f"libvirt at {self.uri} went away, {doing}: {said}; try again", code=code)
        return LibvirtFailure(f"libvirt says no, {doing}: {said}", code=code)
