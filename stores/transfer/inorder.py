"""Digests of pieces that come in any order, in a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from stores.transfer.digests import Digester


class InOrder:
    """Hands pieces to a digester in the order of their numbers, from 0, in whatever order they are submitted.

    One thread is in `run`; pieces are received and written in others meanwhile, so that nobody waits for the digest as long
    as there are buffers.
    """

    def __init__(self, digester: Digester) -> None:
        self._digester = digester
        self._waiting: dict[int, tuple[Iterator[memoryview], Callable[[], None]]] = {}
        self._next = 0
        self._ended = False
        self._stopped = False
        self._changed = threading.Condition()

    def submit(self, number: int, views: Iterator[memoryview], done: Callable[[], None]) -> None:
        """The content of piece `number`, in views; `done` is called, in the thread of `run`, when they are in the digest."""
        with self._changed:
            self._waiting[number] = views, done
            self._changed.notify_all()

    def end(self) -> None:
        """All pieces were submitted."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Ends `run` before its time."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def run(self) -> None:
        """Blocks until all pieces are in the digest, or until `stop`."""
        while (piece := self._take()) is not None:
            views, done = piece
            for view in views:
                if self._stopped:
                    return
                self._digester.update(view)
            self._next += 1
            done()

    def _take(self) -> tuple[Iterator[memoryview], Callable[[], None]] | None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or self._next in self._waiting or (self._ended and not self._waiting)
            )
            return None if self._stopped else self._waiting.pop(self._next, None)
