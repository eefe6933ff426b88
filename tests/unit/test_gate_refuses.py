"""Hostile images are refused, each by its own rule, from their beginning where that is possible, and with no path oracle."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisors.contract import ImageRefused
from hypervisors.images.gate import HEAD, GateLimits, Verdict, inspect, inspect_head
from stores.contract import KiB, MiB
from stores.errors import Retry
from stores.to import ImageFormat
from tests.hostile_images import HOSTILE
from tests.images import BytesReader, add_vmdk_footer, make_image, make_iso, make_raw, set_vmdk_descriptor

LIMITS = GateLimits()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """Images of `HOSTILE`, each made once."""
    directory = tmp_path_factory.mktemp("hostile")

    @cache
    def make(name: str) -> bytes:
        path = HOSTILE[name].make(directory / "image")
        try:
            return path.read_bytes()
        finally:
            path.unlink()

    return make


async def refusal(data: bytes, declared: ImageFormat | None) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        await inspect(BytesReader(data), declared=declared, limits=LIMITS)
    return caught.value


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_images(made: Callable[[str], bytes], name: str) -> None:
    hostile = HOSTILE[name]
    data = made(name)
    error = await refusal(data, hostile.format)
    assert error.details["rule"] == hostile.rule
    assert error.retry is Retry.NO
    assert "/etc" not in error.message + str(error.details)


SEEN_AT_THE_END = (
    "footer",
    "end marker",
    "fixed",
    "DMG",
    "ISO: VHD",
    "VHD: not whole",
    "VMDK: grain directory outside",
)
NEEDS_THE_SIZE = ("outside", "shorter than")


@pytest.mark.parametrize("name", [name for name in HOSTILE if not any(word in name for word in SEEN_AT_THE_END)])
def test_hostile_images_are_refused_as_soon_as_their_metadata_is_there(made: Callable[[str], bytes], name: str) -> None:
    hostile = HOSTILE[name]
    data = made(name)
    head = data[: 4 * MiB if hostile.format is ImageFormat.VHDX else HEAD]
    size_known = any(word in name for word in NEEDS_THE_SIZE)
    with pytest.raises(ImageRefused) as caught:
        inspect_head(head, total_size=len(data) if size_known else None, declared=hostile.format, limits=LIMITS)
    assert caught.value.details["rule"] == hostile.rule


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_is_refused_is_refused_whatever_is_declared(made: Callable[[str], bytes], name: str) -> None:
    """Only what had no other fault than its declaration passes: an image declared as RAW, or a VHD without its footer."""
    hostile = HOSTILE[name]
    data = made(name)
    harmless = hostile.rule == "declared-mismatch" and name != "raw: VMDK descriptor"
    harmless = harmless or name == "VHD: fixed with something behind its footer"
    for declared in (None, *ImageFormat):
        try:
            verdict = await inspect(BytesReader(data), declared=declared, limits=LIMITS)
        except ImageRefused:
            continue
        assert harmless, (declared, verdict)


@pytest.mark.parametrize("declared", [form for form in ImageFormat if form not in ("QCOW2", "RAW")])
async def test_a_declaration_must_be_true(tmp_path: Path, declared: ImageFormat) -> None:
    qcow2 = make_image(tmp_path / "qcow2", ImageFormat.QCOW2, MiB).read_bytes()
    raw = make_raw(tmp_path / "raw", MiB).read_bytes()
    for data in (qcow2, raw):
        assert (await refusal(data, declared)).details["rule"] in ("declared-mismatch", "format", "vhd-footer")


async def test_a_refusal_does_not_depend_on_what_exists_here(tmp_path: Path) -> None:
    seen = []
    for target in ("/etc/passwd", "/no/such/file/anywhere", str(tmp_path), "/dev/null", "/root/.ssh/id_rsa"):
        path = make_image(tmp_path / "image", ImageFormat.VMDK, MiB)
        set_vmdk_descriptor(path, 'SPARSE "image"', f'SPARSE "{target}"')
        error = await refusal(path.read_bytes(), ImageFormat.VMDK)
        seen.append((error.message, error.details))
    assert all(one == seen[0] for one in seen)


async def test_an_object_of_unknown_size_is_not_judged_at_random() -> None:
    reader = BytesReader(bytes(1000))
    reader.info = type(reader.info)(ref="image", size=None)
    with pytest.raises(ImageRefused) as caught:
        await inspect(reader, declared=None, limits=LIMITS)
    assert caught.value.details["rule"] == "size-unknown"


# ----------------------------------------------------------------------------------------------- cut and changed

GOOD = {
    "qcow2": (ImageFormat.QCOW2, ""),
    "VHD dynamic": (ImageFormat.VHD, "force_size=on"),
    "VHD fixed": (ImageFormat.VHD, "subformat=fixed,force_size=on"),
    "VHDX": (ImageFormat.VHDX, ""),
    "VMDK sparse": (ImageFormat.VMDK, ""),
    "VMDK stream": (ImageFormat.VMDK, "subformat=streamOptimized"),
    "VMDK footer": (ImageFormat.VMDK, "subformat=streamOptimized"),
    "ISO": (ImageFormat.ISO, ""),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("good")
    images = {}
    for name, (image_format, options) in GOOD.items():
        path = directory / name
        if image_format is ImageFormat.ISO:
            make_iso(path)
        else:
            make_image(path, image_format, 2 * MiB, extents=[(0, 64 * KiB), (1 * MiB, 64 * KiB)], options=options)
        if name == "VMDK footer":
            add_vmdk_footer(path)
        images[name] = path.read_bytes()
    return images


async def verdict_or_refusal(data: bytes, declared: ImageFormat | None) -> Verdict | ImageRefused:
    """Nothing else may come out, whatever goes in."""
    try:
        return await inspect(BytesReader(data), declared=declared, limits=LIMITS)
    except ImageRefused as error:
        return error


ENDS_WITH_ITS_METADATA = {
    # What lies behind, `qemu-img check` looks at after the copy.
    "qcow2": 0x30000 + 8,  # the L1 table, the last of the header's tables, has one entry
    "VMDK sparse": 22 * 512,  # the grain directory behind the descriptor
    "VMDK stream": 22 * 512,
    "VHDX": 4 * MiB,  # regions must be there as a whole
}
BORDERS = [
    0,
    4,
    8,
    72,
    104,
    112,
    512,
    1024,
    1536,
    2048,
    32 * KiB,
    34 * KiB,
    64 * KiB,
    128 * KiB,
    192 * KiB,
    256 * KiB,
    320 * KiB,
]


@pytest.mark.parametrize("name", GOOD)
@given(border=st.sampled_from(BORDERS) | st.none(), step=st.integers(-2, 2), part=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_a_truncated_image_is_refused(
    good: dict[str, bytes], name: str, border: int | None, step: int, part: float
) -> None:
    image = good[name]
    end = ENDS_WITH_ITS_METADATA.get(name, len(image))
    length = int(part * end) if border is None else min(max(border + step, 0), end - 1)
    assert isinstance(await verdict_or_refusal(image[:length], GOOD[name][0]), ImageRefused)


@pytest.mark.parametrize("name", GOOD)
async def test_only_a_whole_image_passes(good: dict[str, bytes], name: str) -> None:
    end = ENDS_WITH_ITS_METADATA.get(name, len(good[name]))
    assert isinstance(await verdict_or_refusal(good[name], GOOD[name][0]), Verdict)
    for cut in (1, 511, 512, 513, 1024, 1536, 2048):
        assert isinstance(await verdict_or_refusal(good[name][: end - cut], GOOD[name][0]), ImageRefused)


METADATA_OF = {
    "VHDX": [(64 * KiB, 80), (192 * KiB, 96), (3 * MiB, 256), (3 * MiB + 64 * KiB, 64)],
    "ISO": [(32 * KiB, 2048)],
}


@pytest.mark.parametrize("name", GOOD)
@given(data=st.data())
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_changed_metadata_is_a_refusal_or_a_sound_verdict(
    good: dict[str, bytes], name: str, data: st.DataObject
) -> None:
    """Never another error, never a size out of bounds, never more read than a few small ranges."""
    image = bytearray(good[name])
    regions = METADATA_OF.get(name, [(0, 2048), (len(image) - 1536, 1536)])
    for _ in range(data.draw(st.integers(1, 3))):
        start, length = data.draw(st.sampled_from(regions))
        offset = start + data.draw(st.integers(0, length - 8))
        width = data.draw(st.sampled_from([1, 2, 4, 8]))
        value = data.draw(st.sampled_from([0, 1, 0xFF, 1 << 31, (1 << 64) - 1]) | st.integers(0, (1 << 64) - 1))
        image[offset : offset + width] = (value % (1 << 8 * width)).to_bytes(width, "big")
    outcome = await verdict_or_refusal(bytes(image), data.draw(st.sampled_from([None, GOOD[name][0]])))
    if isinstance(outcome, Verdict):
        assert outcome.virtual_size is not None
        assert 0 < outcome.virtual_size <= LIMITS.virtual_size
        assert not outcome.provisional


@given(head=st.binary(max_size=600), repeat=st.sampled_from([1, 200]), declared=st.sampled_from([None, *ImageFormat]))
@settings(max_examples=300, deadline=None)
async def test_any_bytes_at_all(head: bytes, repeat: int, declared: ImageFormat | None) -> None:
    await verdict_or_refusal(head * repeat, declared)


@given(
    magic=st.sampled_from(
        [b"QFI\xfb\0\0\0\3", b"QFI\xfb\0\0\0\2", b"conectix", b"vhdxfile", b"KDMV\1\0\0\0", b"# \nversion=1\n"]
    ),
    rest=st.binary(max_size=2048),
    size=st.sampled_from([0, 512, HEAD, 400 * KiB]),
)
@settings(max_examples=300, deadline=None)
async def test_any_bytes_behind_a_magic(magic: bytes, rest: bytes, size: int) -> None:
    await verdict_or_refusal((magic + rest).ljust(size, b"\0"), None)
