"""Images that are only laid out, read as if they were finished; and finished ones, whose layout is read back."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisors.contract import ImageRefused
from hypervisors.images.qcow2_readback import read_layout
from hypervisors.images.qcow2_stream import ZERO_CLUSTER, Layout, layout
from hypervisors.images.streaming import LayoutReader
from stores.backends.filesystem import FilesystemStore
from stores.contract import Ahead, BlockingCalls, Extent, KiB, Kind, MiB, RangeReader
from stores.errors import IntegrityError, Unavailable
from stores.transfer.engine import TransferEngine
from stores.transfer.threads import Threads
from tests.disk_histories import History, finished, histories, sha
from tests.images import BytesReader, content, make_qcow2

SOME = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DISK = content(9 * MiB + 512, seed=4)
EXTENTS = [
    Extent(0, 3 * MiB, zero=False),
    *(Extent(at, 1, zero=False) for at in range(4 * MiB, 6 * MiB, 192 * KiB)),
    Extent(7 * MiB + 5, 2 * MiB + 507, zero=False),
]


@asynccontextmanager
async def engines() -> AsyncIterator[TransferEngine]:
    engine = TransferEngine()
    try:
        yield engine
        assert engine.buffers.taken == 0
    finally:
        await engine.aclose()


@pytest.fixture
async def engine() -> AsyncIterator[TransferEngine]:
    async with engines() as made:
        yield made


class BulkReader(BytesReader):
    """Reads in a thread, as files and servers do, and notes how much it is told that will be read on from there."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data
        self.fail_at: int | None = None
        self.gate: threading.Event | None = None
        self.waiting = threading.Event()
        self.promised: list[list[tuple[int, int]]] = []

    async def read_each(
        self,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        threads: BlockingCalls,
        *,
        ahead: Ahead = lambda: (),
    ) -> None:
        def read() -> None:
            while (wanted := take()) is not None:
                offset, buffer = wanted
                self.reads.append((offset, len(buffer)))
                self.promised.append(list(ahead()))
                if self.gate is not None:
                    self.waiting.set()
                    self.gate.wait()
                if self.fail_at is not None and offset <= self.fail_at < offset + len(buffer):
                    raise Unavailable("broken on purpose")
                buffer[:] = self.data[offset : offset + len(buffer)]
                put(offset, buffer)

        await threads.run(read, abort=self.gate.set if self.gate is not None else None)


def reader_of(disk: RangeReader, engine: TransferEngine, *, cluster: int = 64 * KiB) -> LayoutReader:
    made = layout(len(DISK), EXTENTS, cluster=cluster)
    return LayoutReader(made, disk, engine.network.of(disk))


# ------------------------------------------------------------------------------------------- read as if finished


@pytest.mark.parametrize("kind", [BytesReader, BulkReader])
@pytest.mark.parametrize("cluster", [512, 64 * KiB, 2 * MiB])
async def test_it_is_streamed_and_digested_as_any_object(
    engine: TransferEngine, kind: type[BytesReader], cluster: int
) -> None:
    made = layout(len(DISK), EXTENTS, cluster=cluster)
    image = finished(made, DISK)
    disk = kind(DISK)
    reader = LayoutReader(made, disk, engine.network.of(disk))
    assert reader.info.size == len(image)
    streamed = b"".join([bytes(piece) async for piece in engine.stream(reader)])
    assert sha(streamed) == sha(image)
    read = sum(length for _, length in disk.reads)
    assert read == sum(run.length for run in made.runs())  # nothing but what the image holds, and that once
    assert await engine.digest(reader, ["sha256"]) == {"sha256": sha(image)}


async def test_a_file_on_disk_becomes_an_image_in_a_file(engine: TransferEngine, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(DISK)
    store = FilesystemStore(tmp_path, engine, id="files", allowed=[tmp_path])
    async with store.present(await store.stat("disk.raw"), Kind.RANGE_READER) as disk:
        assert isinstance(disk, RangeReader)
        fetched = await engine.fetch(reader_of(disk, engine), tmp_path / "image.qcow2", digests=["sha256"])
    image = finished(layout(len(DISK), EXTENTS), DISK)
    assert fetched.digests["sha256"] == sha(image)
    assert sha((tmp_path / "image.qcow2").read_bytes()) == sha(image)


@SOME
@given(history=histories(most=2), chance=st.randoms(use_true_random=False))
async def test_any_range_by_many_at_once(history: History, chance: random.Random) -> None:
    disk, made = history.versions[-1].content, history.layouts()[-1]
    image = history.images()[-1]
    received = bytearray(made.size)
    cuts = sorted({0, made.size, *(chance.randint(0, made.size) for _ in range(6))})
    async with engines() as engine, asyncio.TaskGroup() as group:
        inner = BulkReader(disk)
        reader = LayoutReader(made, inner, engine.network.of(inner))
        for start, stop in pairwise(cuts):
            group.create_task(reader.read_into(start, memoryview(received)[start:stop]))
    assert sha(received) == sha(image)


async def test_data_is_read_straight_into_the_buffer_in_long_runs(engine: TransferEngine) -> None:
    disk = BulkReader(DISK)
    reader = reader_of(disk, engine)
    image = await reader.read(0, finished_size())
    assert sha(image) == sha(finished(layout(len(DISK), EXTENTS), DISK))
    assert disk.reads[0] == (0, 3 * MiB)
    assert disk.reads[-1] == (7 * MiB, len(DISK) - 7 * MiB)


async def test_bulk_reading_says_what_the_disk_will_be_read_on(engine: TransferEngine) -> None:
    """A reader whose requests cost something asks for all of it at once: so far, and not further, it is read in order."""
    disk = BulkReader(DISK)
    size = finished_size()
    wanted = [(at, memoryview(bytearray(min(100 * KiB, size - at)))) for at in range(0, size, 100 * KiB)]
    left = iter(wanted)
    position = 0
    done: list[int] = []

    def take() -> tuple[int, memoryview] | None:
        nonlocal position
        taken = next(left, None)
        if taken is not None:
            position = taken[0] + len(taken[1])
        return taken

    threads = Threads("test", 1)
    try:
        reader = reader_of(disk, engine)
        await reader.read_each(
            take, lambda at, _: done.append(at), threads, ahead=lambda: [(position, min(size - position, MiB))]
        )
    finally:
        threads.close()
    assert done == [at for at, _ in wanted]
    assert sha(b"".join(buffer for _, buffer in wanted)) == sha(finished(layout(len(DISK), EXTENTS), DISK))
    assert max(sum(length for _, length in promised) for promised in disk.promised) > 512 * KiB
    for number, promised in enumerate(disk.promised):
        kept = [byte for offset, length in disk.reads[number + 1 :] for byte in range(offset, offset + length, 512)]
        expected = [byte for offset, length in promised for byte in range(offset, offset + length, 512)]
        assert kept[: len(expected)] == expected


async def test_tables_are_not_read_from_the_disk(engine: TransferEngine) -> None:
    disk = BulkReader(DISK)
    reader = reader_of(disk, engine)
    made = layout(len(DISK), EXTENTS)
    assert await reader.read(0, made.data_at) == finished(made, DISK, 0, made.data_at)
    assert disk.reads == []


async def test_beyond_its_end_there_is_nothing(engine: TransferEngine) -> None:
    reader = reader_of(BulkReader(DISK), engine)
    with pytest.raises(IntegrityError, match="was asked for"):
        await reader.read(finished_size() - 1, 2)


async def test_a_disk_that_fails_ends_the_stream(engine: TransferEngine) -> None:
    disk = BulkReader(DISK)
    disk.fail_at = 8 * MiB
    seen = 0

    async def drain() -> None:
        nonlocal seen
        async for piece in engine.stream(reader_of(disk, engine)):
            seen += len(piece)

    with pytest.raises(Unavailable, match="on purpose"):
        await drain()
    assert 0 < seen < finished_size()
    assert engine.buffers.taken == 0


async def test_cancelled_reading_leaves_the_buffer_alone(engine: TransferEngine) -> None:
    disk = BulkReader(DISK)
    disk.gate = threading.Event()
    buffer = bytearray(finished_size())
    task = asyncio.create_task(reader_of(disk, engine).read_into(0, memoryview(buffer)))
    await asyncio.to_thread(disk.waiting.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    left = sha(buffer)
    await asyncio.sleep(0.02)
    assert sha(buffer) == left


def finished_size() -> int:
    return layout(len(DISK), EXTENTS).size


# ------------------------------------------------------------------------------------------------------ read back


async def readback(image: bytes) -> Layout:
    async with engines() as engine:
        return await read_layout(BytesReader(image), engine)


@SOME
@given(history=histories(most=3))
async def test_the_map_of_an_image_is_found_in_it(history: History) -> None:
    for made, image, version in zip(history.layouts(), history.images(), history.versions, strict=True):
        found = await readback(image)
        assert list(found.runs()) == list(made.runs())
        assert found.virtual_size == len(version.content)
        for run in found.runs():
            if run.host is not None:
                there = image[run.host : run.host + run.length]
                assert sha(there) == sha(version.content[run.offset : run.offset + run.length])


@settings(SOME, max_examples=200)
@given(
    history=histories(most=2),
    place=st.integers(0, 103) | st.floats(0, 1, exclude_max=True),
    mask=st.just(1) | st.integers(1, 255),
)
async def test_tables_that_another_byte_makes_contradict_themselves_are_refused(
    history: History, place: int | float, mask: int
) -> None:
    """What passes is the image of another disk, in all respects: smaller or larger in its last cluster, or with a cluster
    that is zero instead of left out, or the other way round."""
    made, image = history.layouts()[-1], bytearray(history.images()[-1])
    at = place if isinstance(place, int) else int(place * made.data_at)
    before = image[at]
    image[at] ^= mask
    try:
        found = await readback(bytes(image))
    except ImageRefused:
        return
    assert finished(found, bytes(found.virtual_size), 0, found.data_at) == image[: found.data_at]
    assert found.size == len(image)
    assert 24 <= at < 32 or {before, image[at]} == {0, ZERO_CLUSTER}


async def test_what_fills_up_the_last_cluster_is_compared() -> None:
    image = bytearray(finished(layout(len(DISK), EXTENTS), DISK))
    image[-1] = 1
    with pytest.raises(ImageRefused) as raised:
        await readback(bytes(image))
    assert raised.value.details == {"rule": "qcow2-layout", "offset": len(image) - 1}


@SOME
@given(history=histories(), place=st.floats(0, 1, exclude_max=True))
async def test_an_image_of_another_length_is_refused(history: History, place: float) -> None:
    image = history.images()[0]
    for other in (image[: int(place * len(image))], image + b"\0", image + bytes(history.cluster)):
        with pytest.raises(ImageRefused):
            await readback(other)


@pytest.mark.parametrize(
    "options", ["", "cluster_size=512", "lazy_refcounts=on", "compat=0.10", "preallocation=metadata"]
)
async def test_images_of_others_are_refused(tmp_path: Path, options: str) -> None:
    path = make_qcow2(tmp_path / "image.qcow2", 4 * MiB, options=options)
    with pytest.raises(ImageRefused) as raised:
        await readback(path.read_bytes())
    assert raised.value.details["rule"] == "qcow2-layout"


async def test_an_object_that_ends_early_is_not_taken_for_damaged(engine: TransferEngine) -> None:
    """It is the store that does not keep its word: another attempt may help."""
    disk = BytesReader(finished(layout(len(DISK), EXTENTS), DISK)[: 65 * KiB])
    disk.info = reader_of(BulkReader(DISK), engine).info
    with pytest.raises(IntegrityError):
        await read_layout(disk, engine)
