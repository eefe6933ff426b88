"""VHDX that was not closed: its log is replayed, and what cannot be replayed is refused."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisors.images.formats import file_node, json_filename
from hypervisors.images.vhdx_stream import layout
from stores.contract import Extent, KiB, MiB
from stores.to import ImageFormat
from tests import vhdx_logs
from tests.disk_histories import finished, sha
from tests.images import disk_digest, field, qemu_io
from tests.images import set_vhdx_headers as set_headers
from tests.vhdx_histories import BLOCK, VhdxHistory, identity_of, vhdx_histories
from tests.vhdx_made import ENTRY, ONES, SMALL, SOME, logged, opened_chain, qemu_disk, rule_of, u32, whole_of


@SOME
@given(history=vhdx_histories(most=2), seed=st.integers(0, 1 << 32))
async def test_tables_that_were_being_written(history: VhdxHistory, seed: int) -> None:
    broken = [vhdx_logs.torn(image, random.Random(seed)) for image in history.images()]
    before = [sha(image) for image in broken]
    assert sha(await whole_of(await opened_chain(broken))) == sha(history.versions[-1].content)
    assert [sha(image) for image in broken] == before


@settings(SOME, max_examples=6)
@given(history=vhdx_histories(sectors=[512]), seed=st.integers(0, 1 << 32))
async def test_qemu_replays_the_same(history: VhdxHistory, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "torn.vhdx"
    path.write_bytes(vhdx_logs.torn(history.images()[0], random.Random(seed)))
    ours = sha(await whole_of(await opened_chain([path.read_bytes()])))
    subprocess.run(["qemu-img", "check", "-f", "vhdx", "-r", "all", str(path)], check=True, capture_output=True)
    assert not any(field(path, 64 * KiB + 48, 16))
    assert ours == disk_digest(path, ImageFormat.VHDX)


async def test_an_image_that_qemu_could_not_finish(tmp_path: Path) -> None:
    """It has written the log, and then cannot write the block table."""
    path = qemu_disk(tmp_path, 5 * MiB)
    qemu_io(path, ImageFormat.VHDX, "write -P 1 0 1M")
    table = struct.unpack("<Q", field(path, 192 * KiB + 16 + 16, 8))[0]
    fails = {"event": "none", "iotype": "write", "sector": table // 512, "errno": 5}
    node = {"driver": "vhdx", "file": {"driver": "blkdebug", "image": file_node(str(path)), "inject-error": [fails]}}
    command = ["qemu-io", "-c", f"write -P 2 {3 * MiB + 4096} 64k", json_filename(node)]
    told = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "Input/output error" in told.stdout + told.stderr
    assert any(field(path, 64 * KiB + 48, 16))
    before = sha(path.read_bytes())
    ours = await whole_of(await opened_chain([path.read_bytes()]))
    assert ours[3 * MiB + 4096 :][: 64 * KiB] == b"\2" * 64 * KiB
    assert sha(path.read_bytes()) == before
    subprocess.run(["qemu-img", "check", "-f", "vhdx", "-r", "all", str(path)], check=True, capture_output=True)
    assert sha(ours) == disk_digest(path, ImageFormat.VHDX)


async def test_a_file_that_was_growing() -> None:
    """Its last block is zero, not in the file yet, and the log says how large it is."""
    image = finished(layout(2 * BLOCK, [Extent(0, 2 * BLOCK, zero=False)], identity=identity_of(0), block=BLOCK), ONES)
    grown = bytearray(image[:-BLOCK])
    vhdx_logs.put(grown, [vhdx_logs.entry([], 1, 0, size=len(image), flushed=len(grown))], 0)
    vhdx_logs.mark_open(grown)
    assert sha(await whole_of(await opened_chain([grown]))) == sha(ONES[:BLOCK] + bytes(BLOCK))


async def test_later_writes_lie_over_earlier_ones() -> None:
    """Zeroes over data over zeroes, in one entry and in several; also over blocks."""
    place = len(SMALL) - BLOCK
    writes: list[list[vhdx_logs.Data | vhdx_logs.Zeroes]] = [
        [vhdx_logs.Zeroes(place, 64 * KiB), vhdx_logs.Data(place + 4 * KiB, b"a" * 4096)],
        [vhdx_logs.Data(place + 8 * KiB, b"b" * 4096), vhdx_logs.Zeroes(place + 8 * KiB, 8 * KiB)],
        [vhdx_logs.Data(place + 12 * KiB, b"c" * 4096), vhdx_logs.Data(place + 12 * KiB, b"d" * 4096)],
    ]
    entries = [vhdx_logs.entry(some, 7 + number, 0, size=len(SMALL)) for number, some in enumerate(writes)]
    found = await whole_of(await opened_chain([logged(*entries)]))
    expected = bytes(4096) + b"a" * 4096 + bytes(4096) + b"d" * 4096 + bytes(48 * KiB)
    assert found[BLOCK:][: 64 * KiB] == expected


async def test_an_entry_may_have_padding() -> None:
    place = len(SMALL) - BLOCK
    entry = vhdx_logs.entry([vhdx_logs.Data(place, b"a" * 4096)], 1, 0, size=len(SMALL)).ljust(64 * KiB, b"\0")
    found = await whole_of(await opened_chain([logged(changed(entry, 8, u32(64 * KiB)))]))
    assert found[BLOCK:][:4096] == b"a" * 4096


async def test_what_comes_before_the_tail_was_done() -> None:
    place = len(SMALL) - BLOCK
    done = vhdx_logs.entry([vhdx_logs.Data(place, b"a" * 4096)], 1, 0, size=len(SMALL))
    to_do = vhdx_logs.entry([vhdx_logs.Data(place + 4096, b"b" * 4096)], 2, len(done), size=len(SMALL))
    found = await whole_of(await opened_chain([logged(done, to_do)]))
    assert b"a" * 4096 not in found
    assert b"b" * 4096 in found


def changed(made: bytes, at: int, data: bytes, *, seal: bool = True) -> bytes:
    made = made[:at] + data + made[at + len(data) :]
    return vhdx_logs.sealed(made) if seal else made


BROKEN_LOGS = {
    "empty": logged(),
    "of another file": logged(vhdx_logs.entry([], 5, 0, size=len(SMALL), log=b"other" * 4)),
    "wrong checksum": logged(changed(ENTRY, 8000, b"x", seal=False)),
    "no signature": logged(changed(ENTRY, 0, b"x")),
    "no length": logged(changed(ENTRY, 8, bytes(4))),
    "odd length": logged(changed(ENTRY, 8, struct.pack("<I", 4097))),
    "far longer than what is in it": logged(changed(ENTRY.ljust(128 * KiB, b"\0"), 8, u32(128 * KiB))),
    "longer than the log": logged(changed(ENTRY, 8, struct.pack("<I", 2 * MiB))),
    "its tail elsewhere": logged(changed(ENTRY, 12, struct.pack("<I", 4096))),
    "number 0": logged(changed(ENTRY, 16, bytes(8))),
    "another number": logged(changed(ENTRY, 16, b"\6")),
    "many descriptors": logged(changed(ENTRY, 24, struct.pack("<I", 0xFFFFFFFF))),
    "unknown descriptor": logged(changed(ENTRY, 64, b"what")),
    "descriptor of another entry": logged(changed(ENTRY, 64 + 24, b"\6")),
    "place between sectors": logged(changed(ENTRY, 64 + 16, b"\1")),
    "zeroes of odd length": logged(changed(ENTRY, 96 + 8, b"\1")),
    "data of another entry": logged(changed(ENTRY, 8188, b"\6")),
    "no data": logged(changed(ENTRY, 4096, b"what")),
    "data missing": logged(changed(ENTRY, 96, b"desc")),
    "gap": logged(
        changed(vhdx_logs.entry([], 5, 8192, size=len(SMALL)), 0, b""), vhdx_logs.entry([], 7, 0, size=len(SMALL))
    ),
}


@pytest.mark.parametrize("name", BROKEN_LOGS)
async def test_logs_that_cannot_be_replayed(name: str) -> None:
    assert await rule_of(BROKEN_LOGS[name]) == "vhdx-log"


@pytest.mark.parametrize(
    ("at", "data"), [(68, bytes(4)), (68, struct.pack("<I", 8 * MiB)), (72, bytes(8)), (72, struct.pack("<Q", MiB + 1))]
)
async def test_logs_that_cannot_be_there(tmp_path: Path, at: int, data: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(logged(ENTRY))
    assert await rule_of(set_headers(path, at, data).read_bytes()) == "vhdx-log"


async def test_a_file_that_lost_its_end() -> None:
    assert await rule_of(logged(ENTRY, cut=MiB)) == "truncated"
    assert await rule_of(SMALL[:-1]) == "truncated"
