"""Digests of what passes by, and checksums as commands write them.

CloudStack writes a checksum as `{SHA-256}hex`, or as bare hex for MD5 (`ChecksumValue` in its Java code). The hash functions
come from hashlib, which releases the interpreter lock on large input; CRC32C comes from awscrt.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from stores.errors import InvalidReference

ALGORITHMS: dict[str, int] = {"md5": 32, "sha1": 40, "sha256": 64, "sha384": 96, "sha512": 128, "crc32c": 8}
"""Name of each algorithm and the length of its digest in hex digits."""

_WRITTEN = re.compile(r"(?:\{(?P<algorithm>[A-Za-z0-9-]{1,16})\})?(?P<hex>[0-9A-Fa-f]{1,256})")


@dataclass(frozen=True, slots=True)
class Checksum:
    """A digest that some content must have. `hex` is lower case."""

    algorithm: str
    hex: str


def parse_checksum(text: str) -> Checksum:
    """`{ALGORITHM}hex` or a bare MD5 in hex; names in any case, with or without a dash (`SHA-256`, `sha256`).

    `InvalidReference` when the algorithm is unknown or the digest has the wrong length for it.
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        raise InvalidReference("a checksum is written {ALGORITHM}hex, or as bare hex for MD5", checksum=text[:200])
    algorithm = (match["algorithm"] or "md5").lower().replace("-", "")
    if algorithm not in ALGORITHMS:
        raise InvalidReference(
            f"checksum algorithm {algorithm} is not one of {', '.join(ALGORITHMS)}", algorithm=algorithm
        )
    if len(match["hex"]) != ALGORITHMS[algorithm]:
        raise InvalidReference(
            f"a {algorithm} checksum has {ALGORITHMS[algorithm]} hex digits, this one has {len(match['hex'])}",
            algorithm=algorithm,
        )
    return Checksum(algorithm, match["hex"].lower())


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Crc32c:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4) with hashlib's two methods."""

    def __init__(self) -> None:
        from awscrt import (
            checksums,
        )  # late: it takes 60 ms of CPU, which commands that hash nothing need not pay

        self._add: Callable[[memoryview, int], int] = checksums.crc32c
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        self._value = self._add(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def _new(name: str) -> _Hash:
    if name not in ALGORITHMS:
        raise InvalidReference(f"digest {name} is not one of {', '.join(ALGORITHMS)}", algorithm=name)
    # MD5 and SHA-1 compare content with what a command names; nothing here depends on their strength.
    return _Crc32c() if name == "crc32c" else hashlib.new(name, usedforsecurity=False)


class Digester:
    """Several digests over one sequence of bytes. Not for use by two threads at once."""

    def __init__(self, names: Sequence[str]) -> None:
        """`InvalidReference` for a name that is not in `ALGORITHMS`."""
        self._hashes = {name: _new(name) for name in names}

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._hashes)

    def update(self, view: memoryview) -> None:
        """Takes the next bytes, in order. Blocking; for a thread when `view` is large."""
        for digest in self._hashes.values():
            digest.update(view)

    def hexdigests(self) -> dict[str, str]:
        """Lower-case hex of all bytes so far, by algorithm."""
        return {name: digest.hexdigest() for name, digest in self._hashes.items()}
