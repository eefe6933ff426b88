"""Expanding what is stored compressed: gzip, bzip2, xz and zstd, within bounds."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

MAX_RATIO = 1000.0


class Run(Protocol):
    """How a blocking call gets into a thread: `TransferEngine.run`."""

    def __call__(self, function: Callable[..., T], /, *args: Any) -> Awaitable[T]: ...


def sniff_compression(head: bytes) -> str | None:
    """gzip, bzip2, xz or zstd, when `head` begins like one of them."""
    raise NotImplementedError


def expand(
    stream: AsyncIterable[memoryview],
    compression: str,
    *,
    run: Run,
    limit: int | None,
    max_ratio: float = MAX_RATIO,
) -> AsyncIterator[memoryview]:
    """What `stream` holds, expanded, in order, in bounded pieces.

    `TooLarge` past `limit` bytes of output or past `max_ratio`; `IntegrityError` for damaged, truncated or trailing input.
    """
    raise NotImplementedError
