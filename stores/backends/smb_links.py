"""Connections to one share, kept while they are idle, and the threads that work on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from stores.backends.smb_credentials import login_for
from stores.backends.smb_errors import is_lost, translated
from stores.backends.smb_link import Link
from stores.backends.smb_place import SmbPlace
from stores.settings import StoreSettings
from stores.transfer.engine import TransferEngine

T = TypeVar("T")

KEPT = 4
"""Idle connections that stay open."""


class Links:
    """Each piece of work has a connection to itself, so that giving one up disturbs nobody else."""

    def __init__(self, place: SmbPlace, settings: StoreSettings, engine: TransferEngine) -> None:
        self.place = place
        self._settings = settings
        self._threads = engine.network.of(self)
        self._idle: list[Link] = []
        self._lock = threading.Lock()

    async def run(self, work: Callable[[Link], T], what: str) -> T:
        """What `work`, which is idempotent, does with a connection; again with a new one where an idle one turns out to have
        ended. Errors are typed and name `what`. When cancelled, `work` is stopped and waited for."""
        hold = Hold()
        return await self._threads.run(partial(self._work, work, what, hold), abort=hold.stop)

    async def in_thread(self, call: Callable[[Hold], T]) -> T:
        """A blocking call that has its own connection, which it works on by the hold. When cancelled, it is stopped by that,
        and waited for."""
        hold = Hold()
        return await self._threads.run(partial(call, hold), abort=hold.stop)

    def take(self, hold: Hold, *, new: bool = False) -> Link:
        """A connection to oneself, until `give`. Blocking."""
        while not new:
            with self._lock:
                if not self._idle:
                    break
                link = self._idle.pop()
            if link.alive:
                return link
            link.close()
        settings = self._settings
        link = Link(
            self.place, settings.smb, connect_timeout_s=settings.connect_timeout, silence_s=settings.read_timeout
        )
        with hold.on(link):
            link.open(login_for(self.place, settings.smb))
        return link

    def give(self, link: Link) -> None:
        """Back, with nothing open on it and nothing under way. Blocking."""
        with self._lock:
            if link.alive and len(self._idle) < KEPT:
                self._idle.append(link)
                return
        link.close()

    def begin(self, work: Callable[[Link], T], hold: Hold) -> tuple[Link, T]:
        """A connection on which `work`, which is idempotent, was done, and what it returned: for whoever goes on there, and
        gives it back. An idle connection that turns out to have ended is passed over. Blocking; errors as they are."""
        for new in (False, True):
            link = self.take(hold, new=new)
            try:
                with hold.on(link):
                    return link, work(link)
            except Exception as error:
                lost = is_lost(error)
                if lost:
                    link.close()
                self.give(link)
                if new or not lost or hold.stopped:
                    raise
        raise AssertionError("the second turn returns or raises")

    def close(self) -> None:
        """The idle ones. Idempotent; what is opened later is another beginning. Blocking."""
        with self._lock:
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()

    def _work(self, work: Callable[[Link], T], what: str, hold: Hold) -> T:
        with translated(what, ref=what, store=self.place.name):
            link, result = self.begin(work, hold)
        self.give(link)
        return result


class Hold:
    """Stops the work that is on some connection now, and that which comes to one later."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    @property
    def stopped(self) -> bool:
        return self._stopping.is_set()

    def pause(self, seconds: float) -> None:
        """Ends at once when stopped."""
        self._stopping.wait(seconds)

    @contextmanager
    def on(self, link: Link) -> Iterator[None]:
        with self._lock:
            self._link = link
            if self.stopped:
                link.stop()
        try:
            yield
        finally:
            with self._lock:
                self._link = None
                if self.stopped:
                    link.go_on()

    def stop(self) -> None:
        """From any thread."""
        with self._lock:
            self._stopping.set()
            if self._link is not None:
                self._link.stop()
