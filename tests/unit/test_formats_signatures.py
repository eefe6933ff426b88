"""What an image is treated as: the whole table of signs and declarations."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisors.contract import ImageRefused
from hypervisors.images.formats import DRIVERS
from hypervisors.images.parsing import HEAD
from hypervisors.images.signatures import Sign, at_the_beginning, at_the_end, decide
from stores.to import ImageFormat

NOTHING: frozenset[Sign] = frozenset()
CONTAINERS = {
    Sign.QCOW2: ImageFormat.QCOW2,
    Sign.VHD: ImageFormat.VHD,
    Sign.VHDX: ImageFormat.VHDX,
    Sign.VMDK: ImageFormat.VMDK,
}
WEAK = {Sign.ISO, Sign.BOOT_SECTOR}


def outcome(beginning: set[Sign], end: set[Sign], declared: ImageFormat | None) -> ImageFormat | str:
    """The format, or the rule of the refusal."""
    try:
        return decide(frozenset(beginning), frozenset(end), declared)
    except ImageRefused as refused:
        return str(refused.details["rule"])


@pytest.mark.parametrize("sign", list(CONTAINERS))
def test_a_container_is_itself_or_nothing(sign: Sign) -> None:
    for declared in (None, *DRIVERS):
        for end in (set(), {Sign.VHD}, {Sign.DMG}):
            expected = CONTAINERS[sign] if declared in (None, CONTAINERS[sign]) else "declared-mismatch"
            assert outcome({sign}, end, declared) == expected


@pytest.mark.parametrize("sign", sorted(set(Sign) - set(CONTAINERS) - WEAK))
def test_what_is_not_taken_is_refused_whatever_is_declared(sign: Sign) -> None:
    for declared in (None, *ImageFormat):
        assert outcome({sign}, set(), declared) in ("format", "compressed")


@pytest.mark.parametrize("pair", list(itertools.combinations(sorted(set(Sign) - WEAK), 2)), ids=str)
def test_two_formats_at_once_are_refused(pair: tuple[Sign, Sign]) -> None:
    for declared in (None, *DRIVERS):
        assert outcome(set(pair), set(), declared) == "polyglot"


@pytest.mark.parametrize("sign", list(CONTAINERS))
@pytest.mark.parametrize("other", sorted(WEAK))
def test_a_container_that_is_also_a_disk_or_an_iso_is_refused(sign: Sign, other: Sign) -> None:
    for declared in (None, *DRIVERS):
        assert outcome({sign, other}, set(), declared) == "polyglot"


MISMATCH, POLYGLOT = "declared-mismatch", "polyglot"
RAW, VHD, ISO = ImageFormat.RAW, ImageFormat.VHD, ImageFormat.ISO
TABLE = [
    # beginning, end, undeclared, as RAW, as VHD (which its parser then wants to see a footer of), as ISO
    ((), (), RAW, RAW, VHD, MISMATCH),
    ((Sign.BOOT_SECTOR,), (), RAW, RAW, VHD, MISMATCH),
    ((Sign.ISO,), (), ISO, MISMATCH, VHD, ISO),
    ((Sign.ISO, Sign.BOOT_SECTOR), (), ISO, RAW, VHD, ISO),
    ((), (Sign.VHD,), VHD, MISMATCH, VHD, MISMATCH),
    ((Sign.BOOT_SECTOR,), (Sign.VHD,), VHD, MISMATCH, VHD, MISMATCH),
    ((Sign.ISO,), (Sign.VHD,), POLYGLOT, POLYGLOT, VHD, POLYGLOT),
    ((Sign.ISO, Sign.BOOT_SECTOR), (Sign.VHD,), POLYGLOT, POLYGLOT, VHD, POLYGLOT),
    ((), (Sign.DMG,), "format", "format", "format", "format"),
]


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_disks_and_isos(row: tuple[tuple[Sign, ...], tuple[Sign, ...], object, object, object, object]) -> None:
    beginning, end, *expected = row
    found = [outcome(set(beginning), set(end), declared) for declared in (None, RAW, VHD, ISO)]
    assert found == expected
    for declared in (ImageFormat.QCOW2, ImageFormat.VHDX, ImageFormat.VMDK):
        assert outcome(set(beginning), set(end), declared) in (MISMATCH, POLYGLOT, "format")


@pytest.mark.parametrize("declared", sorted(set(ImageFormat) - set(DRIVERS)))
def test_formats_that_are_not_taken_cannot_be_declared(declared: ImageFormat) -> None:
    for sign in Sign:
        assert outcome({sign}, set(), declared) == "format"
    assert outcome(set(), set(), declared) == "format"


@given(st.binary(max_size=300))
def test_any_bytes_have_some_signs_or_none(data: bytes) -> None:
    assert at_the_beginning(data) | at_the_end(data) <= set(Sign)


@given(prefix=st.binary(max_size=HEAD), sign=st.sampled_from([b"conectix", b"QFI\xfb", b"KDMV", b"vhdxfile"]))
def test_a_magic_is_one_only_where_it_belongs(prefix: bytes, sign: bytes) -> None:
    assert at_the_beginning(b"\0" + prefix.replace(b"\x55\xaa", b"").replace(b"CD001", b"") + sign) <= WEAK | {Sign.TAR}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"# Disk DescriptorFile\nversion=1\n", True),
        (b"\r\n# comment\r\nversion=3\r\nCID=1", True),
        (b"   \n\nversion=2\n", True),
        (b"version=4\n", False),
        (b"# Disk DescriptorFile\n", False),
        (b"a text\nversion=1\n", False),
    ],
)
def test_text_that_qemu_takes_for_a_vmdk(text: bytes, expected: bool) -> None:
    assert (Sign.VMDK in at_the_beginning(text)) is expected
