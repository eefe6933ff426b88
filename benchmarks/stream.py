"""A stream into S3 whose parts are larger than its memory, against one whose parts are not: memory must be the same.

    python -m benchmarks.stream [--size MIB] [--rounds N] [--json FILE]

S3's limit of 10,000 parts is replaced by one of ten, so that an object of 1 GiB is sent as one of 1 TiB would be: in parts of a
tenth of it. The sink computes no checksums: what is measured is the client alone.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import cast

from benchmarks.bytes import make_object
from benchmarks.harness import Contestant, at_most, compare, conclude, measured, show
from benchmarks.sink import run_sink
from stores.backends.filesystem import FilesystemStore
from stores.backends.s3 import S3Store
from stores.backends.s3_parts import S3_CUT, Cut
from stores.contract import Kind, MiB, PendingStream, RangeReader
from stores.secret import Secret
from stores.settings import StoreSettings
from stores.to import S3TO
from stores.transfer.engine import TransferEngine
from stores.transfer.slices import Slice
from tests.servers import make_certificates

TEN_PARTS = Cut(most=10)
AT_ONCE = 8


class Way(StrEnum):
    SMALL = "parts of 5 MiB"
    LARGE = "ten parts, read twice"
    ONCE = "ten parts, kept on a disk"
    SMALL_EIGHT = "eight streams, parts of 5 MiB"
    LARGE_EIGHT = "eight streams, ten parts each, read twice"

    @property
    def streams(self) -> int:
        return AT_ONCE if self in (Way.SMALL_EIGHT, Way.LARGE_EIGHT) else 1

    @property
    def cut(self) -> Cut:
        return S3_CUT if self in (Way.SMALL, Way.SMALL_EIGHT) else TEN_PARTS


class Course:
    """One file, sent in one way: as one object, or each of several streams its share of it."""

    def __init__(self, engine: TransferEngine, store: S3Store, source: Path, way: Way) -> None:
        self._engine = engine
        self._store = store
        self._way = way
        self._name = source.name
        self._source = FilesystemStore(source.parent, engine, id="source", allowed=[source.parent])

    async def run(self) -> None:
        info = await self._source.stat(self._name)
        share = (info.size or 0) // self._way.streams
        async with (
            self._source.present(info, Kind.RANGE_READER) as source,
            asyncio.TaskGroup() as group,
        ):
            for number in range(self._way.streams):
                part = Slice(cast(RangeReader, source), number * share, (number + 1) * share)
                group.create_task(self._send(part, f"object{number}"))

    async def _send(self, source: RangeReader, ref: str) -> None:
        async with self._store.write(ref, Kind.BYTE_STREAM, token=ref, size=source.info.size) as pending:
            stream = cast(PendingStream, pending)
            if self._way is Way.ONCE:
                async for piece in self._engine.stream(source):
                    await stream.write(piece)
            else:
                await self._engine.send(source, stream, digests=["sha256"])
            await stream.commit()


def send(source: Path, endpoint: str, way: Way) -> None:
    """The client is open before the clock starts, as that of a daemon is."""
    with asyncio.Runner() as runner:
        engine = TransferEngine(scratch=source.parent)
        to = S3TO(endPoint=endpoint, accessKey="key", secretKey=Secret("secret"), bucketName="bench")
        store = S3Store(to, StoreSettings(), engine, cut=way.cut)
        course = Course(engine, store, source, way)

        async def open_client() -> None:
            await anext(store.list(), None)

        async def close() -> None:
            for number in range(AT_ONCE):
                await store.delete(f"object{number}")
            await store.aclose()
            await engine.aclose()

        runner.run(open_client())
        measured(lambda: runner.run(course.run()) or {})
        runner.run(close())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="of the file, in MiB (default 1024)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--send", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--to", help=argparse.SUPPRESS)
    parser.add_argument("--way", type=Way, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        send(options.send, options.to, options.way)
        return 0
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="stream-") as name:
        directory = Path(name)
        source = directory / "source"
        make_object(source, options.size * MiB)
        with run_sink(directory, make_certificates(directory)) as sink:
            ours = [sys.executable, "-m", "benchmarks.stream", "--send", str(source), "--to", str(sink.endpoint)]
            contestants = [Contestant(way.value, [*ours, "--way", way.value]) for way in Way]
            # Nothing to check afterwards: a commit compares size and checksum itself.
            rows = compare(contestants, rounds=options.rounds, after=lambda contestant, sample: None)
    show("streams", rows, size=options.size * MiB)
    peaks = {Way(row.name): row.peak_rss_mib for row in rows}
    verdicts = [at_most(f"stream, {way}: peak RSS, MiB", peaks[way], 150) for way in Way]
    conclude(verdicts, {"streams": rows}, options.json)
    return 0 if all(verdict.met for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
