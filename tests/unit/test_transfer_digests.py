"""Checksums as commands write them, and digests of what passes."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.errors import InvalidReference
from stores.transfer.digests import ALGORITHMS, Checksum, Digester, parse_checksum


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("d41d8cd98f00b204e9800998ecf8427e", Checksum("md5", "d41d8cd98f00b204e9800998ecf8427e")),
        ("{MD5}D41D8CD98F00B204E9800998ECF8427E", Checksum("md5", "d41d8cd98f00b204e9800998ecf8427e")),
        ("{SHA-256}" + "Ab" * 32, Checksum("sha256", "ab" * 32)),
        ("{sha512}" + "0" * 128, Checksum("sha512", "0" * 128)),
        (" {SHA-1}" + "f" * 40 + "\n", Checksum("sha1", "f" * 40)),
        ("{CRC32C}e3069283", Checksum("crc32c", "e3069283")),
    ],
)
def test_reads_what_cloudstack_writes(text: str, expected: Checksum) -> None:
    assert parse_checksum(text) == expected


@pytest.mark.parametrize(
    "text", ["", "{}", "{SHA-256}", "{SHA-3}" + "0" * 64, "{SHA-256}" + "0" * 63, "0" * 40, "{MD5}" + "g" * 32, "{MD5"]
)
def test_refuses_what_is_no_checksum(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_checksum(text)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_checksum(text)
    except InvalidReference:
        return
    assert len(found.hex) == ALGORITHMS[found.algorithm]


@given(st.lists(st.binary(max_size=5000), max_size=8))
def test_pieces_give_the_digests_of_the_whole(pieces: list[bytes]) -> None:
    digester = Digester(list(ALGORITHMS))
    for piece in pieces:
        digester.update(memoryview(piece))
    whole = b"".join(pieces)
    found = digester.hexdigests()
    crc = found.pop("crc32c")
    assert found == {name: hashlib.new(name, whole).hexdigest() for name in ALGORITHMS if name != "crc32c"}
    assert crc == f"{_crc32c(whole):08x}"


def test_crc32c_has_its_check_value() -> None:
    digester = Digester(["crc32c"])
    digester.update(memoryview(b"123456789"))
    assert digester.hexdigests() == {"crc32c": "e3069283"}


def test_unknown_digest_is_refused() -> None:
    with pytest.raises(InvalidReference, match="sha3"):
        Digester(["sha3"])


def _crc32c(data: bytes) -> int:
    """Bit by bit, from the polynomial in RFC 3720 appendix B.4, reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
