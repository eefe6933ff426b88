"""Memory for parts of streams on their way out: they come once, and are kept until somebody else has them."""

from __future__ import annotations

from stores.contract import MiB

OUTGOING = 32 * MiB


class Outgoing:
    """`limit` bytes that all streams share, apart from the buffers of readers: a stream that waits for memory must not keep
    what its own source needs to go on.

    Each stream has one part always, so that none ever waits for another; what is left of the limit makes them faster. For
    the event loop's thread.
    """

    def __init__(self, limit: int = OUTGOING) -> None:
        self._limit = limit
        self.used = 0

    @property
    def pressed(self) -> bool:
        """Whether more is out than the limit: whoever has more than one part should give it back."""
        return self.used > self._limit

    def take(self, size: int) -> None:
        """`size` bytes for a stream's one part, also beyond the limit."""
        self.used += size

    def try_take(self, size: int) -> bool:
        """`size` bytes for another part, if they are left."""
        if self.used + size > self._limit:
            return False
        self.used += size
        return True

    def release(self, size: int) -> None:
        """Gives back."""
        self.used -= size
