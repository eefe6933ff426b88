"""libvirt's C library in a program with an event loop: calls that block get a thread, and its events a thread of their own.

Nobody can interrupt a call. One that is late is given up: its thread ends when libvirt answers, and a program that ends does
not wait for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import TypeVar

from stores.errors import Unavailable
from stores.tools.process import ToolMissing

T = TypeVar("T")

_starting = threading.Lock()
_started = False


def library() -> ModuleType:
    """libvirt-python, with its event loop running. That is one for the whole process, and stays: there is no way to end it.

    Imported only where guests are driven: it is an extra. `ToolMissing` without it.
    """
    global _started
    try:
        import libvirt
    except ImportError as error:
        raise ToolMissing(
            "guests are driven through libvirt-python, which is not installed: install storage-agent[kvm], or set"
            " kvm.libvirt_uri to none, and ISOs only become files",
            tool="libvirt-python",
            package="python3-libvirt",
        ) from error
    with _starting:
        if not _started:
            libvirt.registerErrorHandler(lambda _context, _error: None, None)  # it would write to stderr
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=_run_events, args=(libvirt,), name="libvirt-events", daemon=True).start()
            _started = True
    module: ModuleType = libvirt
    return module


def _run_events(libvirt: ModuleType) -> None:
    while True:
        with suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()


async def in_thread(call: Callable[[], T], *, doing: str, within_s: float) -> T:
    """What `call` returns or raises; `Unavailable` if it takes longer. When cancelled, it is waited for, so long at most."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - the waiting task raises it
                loop.call_soon_threadsafe(ended.set_exception, error)
            else:
                loop.call_soon_threadsafe(ended.set_result, result)

    ended.add_done_callback(_looked_at)
    until = loop.time() + within_s
    threading.Thread(target=run, name="libvirt-call", daemon=True).start()
    cancelled: asyncio.CancelledError | None = None
    while not ended.done() and (left := until - loop.time()) > 0:
        try:
            await asyncio.wait([ended], timeout=left)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    if not ended.done():
        raise Unavailable(
            f"libvirt did not answer within {within_s:g} s, {doing}; look at libvirtd and the guest's qemu"
        )
    return ended.result()


def _looked_at(ended: asyncio.Future[T]) -> None:
    """The outcome of a call that was given up interests nobody; asyncio wants it looked at."""
    if not ended.cancelled():
        ended.exception()
