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
    credit: int  # bytes asked for, less those that were jumped over
    ahead: int  # everything before this was advised already


@dataclass(frozen=True, slots=True)
class Advice:
    """`sequential`: worth reading in large pieces. `start` to `stop`: what will probably be asked for next."""

    sequential: bool
    start: int
    stop: int


class ReadAhead:
    """Recognises sequential readers among the requests for one export, of whichever connection.

    A stream is believed as far as it has proven itself: advice goes at most as many bytes ahead as were asked for, less
    what was jumped over, and at most `window`. So what turns out to be needless is never more than what was needed. Once
    the whole window is open, advice comes in spans that end at multiples of `span`, each worth one large request.
    """

    def __init__(self, size: int, *, window: int, span: int) -> None:
        self._size = size
        self._window = window
        self._span = span
        self._streams: list[_Stream] = []  # the most recently seen last

    def observe(self, offset: int, length: int) -> Advice:
        """Take note of a request; what to do beyond it."""
        end = offset + length
        stream = self._stream_at(offset)
        if stream is None:
            self._streams = [*self._streams[-_STREAMS + 1 :], _Stream(position=end, credit=length, ahead=end)]
            return Advice(False, end, end)
        before = max(0, stream.credit - max(0, offset - stream.position))
        proven, moves_on = before >= _PROVEN, end > stream.position
        stream.credit = before + length
        stream.position = max(stream.position, end)
        if not (proven and moves_on):  # to go back over what was read is no reason to read on
            return Advice(proven, end, end)
        start = max(stream.ahead, stream.position)
        stop = stream.position + min(self._window, stream.credit)
        if stop >= self._size:
            stop = self._size
        elif stream.credit >= self._window:
            stop -= stop % self._span
        stream.ahead = max(stream.ahead, stop)
        return Advice(True, start, max(start, stop))

    def _stream_at(self, offset: int) -> _Stream | None:
        for index in range(len(self._streams) - 1, -1, -1):
            stream = self._streams[index]
            if abs(offset - stream.position) <= _SLACK:
                self._streams.append(self._streams.pop(index))
                return stream
        return None
