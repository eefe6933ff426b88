"""What a tool writes: collected up to a limit, or its last lines, or how far it is."""

from __future__ import annotations

import re
from collections.abc import Callable

from stores.contract import KiB

_URL_SECRETS = re.compile(r"(?<=://)[^/\s@]*@|(?<=\?)[^\s'\"]+")
_TOLD_LINES = 8
_TOLD_LENGTH = 1 * KiB
_TAIL = 64 * KiB


class QemuProgress:
    """Reads what `qemu-img -p` prints, `    (12.34/100%)`, however it is cut, and tells the latest (perhaps again)."""

    _PATTERN = re.compile(rb"\((\d{1,3}\.\d\d)/100%\)")
    _LONGEST = len(b"(100.00/100%)")
    overflowed = False

    def __init__(self, told: Callable[[float], None]) -> None:
        self._told = told
        self._tail = b""

    def feed(self, data: bytes) -> None:
        text = self._tail + data
        self._tail = text[-self._LONGEST :]
        if found := self._PATTERN.findall(text):
            self._told(min(float(found[-1]) / 100, 1.0))


class Collected:
    """Output up to a limit."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self.overflowed = False
        self._limit = limit

    def feed(self, data: bytes) -> None:
        self.overflowed = self.overflowed or len(self.data) + len(data) > self._limit
        if not self.overflowed:
            self.data += data


class Tail:
    """The end of an output without end."""

    overflowed = False

    def __init__(self) -> None:
        self.data = b""

    def feed(self, data: bytes) -> None:
        self.data = (self.data + data)[-_TAIL:]


def told_lines(stderr: bytes) -> str:
    """The last lines of a tool's complaints, fit for a log: printable, short, and URLs without user and query."""
    text = _URL_SECRETS.sub("***", stderr.decode(errors="replace"))
    lines = ["".join(c if c.isprintable() else " " for c in line).strip() for line in text.splitlines()]
    return " | ".join(line for line in lines[-_TOLD_LINES:] if line)[-_TOLD_LENGTH:]
