"""What is mounted where: /proc/self/mountinfo (proc_pid_mountinfo(5)). Reading that touches no mount: none can hang it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    at: Path
    source: str
    type: str


def parse(text: str) -> Mapping[Path, Mounted]:
    """By mount point; where there are several on top of each other, the uppermost."""
    found: dict[Path, Mounted] = {}
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if dash and len(fields) > 4 and len(rest) > 1:
            at = Path(_plain(fields[4]))
            found[at] = Mounted(at, _plain(rest[1]), rest[0])
    return found


def read() -> Mapping[Path, Mounted]:
    return parse(MOUNTINFO.read_text(errors="surrogateescape"))


def _plain(field: str) -> str:
    r"""Blanks and backslashes are written in octal: `\040`."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), field)
