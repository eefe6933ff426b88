"""When to read ahead, and how far: a decision on what was asked so far, without I/O and without time."""

from __future__ import annotations

from dataclasses import dataclass

from stores.contract import KiB, MiB

_STREAMS = 16
_SLACK = 4 * MiB
"""How far out of order the requests of one stream may come: several connections, or several requests in flight."""
_PROVEN = 256 * KiB
"""Bytes in sequence before a stream is believed: more than a metadata table that is looked at here and there."""


@dataclass(slots=True)
class _Stream:
    position: int  # the furthest byte that was asked for
    total: int  # bytes asked for in sequence
    ahead: int  # everything before this was advised already


@dataclass(frozen=True, slots=True)
class Advice:
    """`sequential`: worth reading in large pieces. `start` to `stop`: what will probably be asked for next."""

    sequential: bool
    start: int
    stop: int


class ReadAhead:
    """Recognises sequential readers among the requests for one export, of whichever connection.

    Advice for a stream never goes further ahead than the stream has already come, nor than `window` bytes: what turns out
    to be needless is at most as much as what was needed.
    """

    def __init__(self, size: int, window: int) -> None:
        self._size = size
        self._window = window
        self._streams: list[_Stream] = []  # the most recently seen last

    def observe(self, offset: int, length: int) -> Advice:
        """Take note of a request; what to do beyond it."""
        end = offset + length
        stream = self._stream_at(offset)
        if stream is None:
            self._streams = [*self._streams[-_STREAMS + 1 :], _Stream(position=end, total=length, ahead=end)]
            return Advice(False, end, end)
        stream.total += min(length, max(0, end - stream.position))
        stream.position = max(stream.position, end)
        if stream.total < _PROVEN:
            return Advice(False, end, end)
        start = max(stream.ahead, stream.position)
        stop = min(stream.position + min(self._window, stream.total), self._size)
        stream.ahead = max(stream.ahead, stop)
        return Advice(True, start, max(start, stop))

    def _stream_at(self, offset: int) -> _Stream | None:
        for index in range(len(self._streams) - 1, -1, -1):
            stream = self._streams[index]
            if abs(offset - stream.position) <= _SLACK:
                self._streams.append(self._streams.pop(index))
                return stream
        return None
