"""A full disk, for this process alone and for as long as the test wants."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import structlog


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes; those that are larger cannot be written past it.

    That is how a full disk looks to SQLite. It would hit our own output as well, which pytest captures in a file: so
    nothing is logged meanwhile.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with structlog.testing.capture_logs():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
