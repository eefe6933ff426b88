"""Task groups of which callers see the failure that ended them, not the group around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def first_failure() -> Iterator[None]:
    """Raises the first exception of an exception group in its place, with its own cause."""
    try:
        yield
    except BaseExceptionGroup as failures:
        first = _first(failures)
        raise first from first.__cause__


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that came first; groups inside groups are those of tasks inside tasks."""
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
