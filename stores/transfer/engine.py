"""The process-wide mover of bytes: ranges or a stream into a file, beside it digests, within one memory budget."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from stores.contract import ByteStream, MiB, Progress, RangeReader, Silent

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fetched:
    """What arrived: bytes, and the digests that were asked for, in lower-case hex."""

    size: int
    digests: dict[str, str] = field(default_factory=dict)


class TransferEngine:
    """One per process. All transfers share its buffers and threads, fairly.

    Nothing it writes is fsynced: durability is the caller's `PendingFile.commit`.
    """

    def __init__(self, *, memory: int = 48 * MiB, threads: int = 32) -> None:
        """`memory` bytes of buffers in all; at most `threads` threads that wait for the network."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A blocking call in a named thread. When cancelled, waits until the call has ended, then raises."""
        raise NotImplementedError

    async def fetch(
        self, source: RangeReader, destination: Path, *, digests: Sequence[str] = (), progress: Progress | None = None
    ) -> Fetched:
        """All of `source` into `destination`, in place, in parallel; holes stay holes."""
        raise NotImplementedError

    async def store_stream(
        self,
        source: ByteStream | AsyncIterator[memoryview],
        destination: Path,
        *,
        limit: int | None = None,
        digests: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Fetched:
        """A sequential source into `destination`; `TooLarge` before a byte past `limit` is written."""
        raise NotImplementedError

    async def digest(
        self, source: RangeReader, names: Sequence[str], progress: Progress | None = None
    ) -> dict[str, str]:
        """Digests of all of `source`, read in parallel, computed in order."""
        raise NotImplementedError

    def stream(self, reader: RangeReader) -> ByteStream:
        """The object in order, read ahead in parallel."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Gives back threads, connections and buffers. Idempotent."""
