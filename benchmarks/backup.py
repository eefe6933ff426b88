"""A backup against the classical way: a snapshot in a pool becomes an object in S3.

    python -m benchmarks.backup [--rounds N] [--directory DIRECTORY] [--json FILE]

The classical way is `qemu-img convert` of the snapshot to a temporary file, which is then uploaded. The server throws away what
it is sent, so that what is measured is the client; `tests/` prove that backups can be restored.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.config import AgentSection, ApiSection, Config, PoolsSection, UrlsSection
from agent.wiring import build
from benchmarks.disk import ram_disk, write_rate
from benchmarks.harness import (
    Contestant,
    ContestantFailed,
    Row,
    Sample,
    Verdict,
    at_least,
    at_most,
    compare,
    conclude,
    show,
)
from benchmarks.image import make_images
from benchmarks.sink import forget, run_sink, size_of
from benchmarks.tools import TOOLS, aws_environment
from hypervisors import verbs
from hypervisors.contract import HypervisorType
from stores.contract import GiB, KiB, MiB
from stores.to import S3TO, DataStoreTO, DataTO, ImageFormat, PrimaryDataStoreTO, SnapshotObjectTO, VolumeObjectTO
from tests.servers import S3Server, make_certificates

BUCKET = "bench"
CLUSTER = 64 * KiB
SPARSE = 8 * 1024 * GiB
SPARSE_DATA = 3 * GiB // 2
RUNS = 24
"""The data of the sparse volume lie in so many runs, as far apart as they can be."""


@dataclass(frozen=True)
class Volume:
    """A volume in the pool, its snapshots, and where their backups go."""

    path: Path
    pool: PrimaryDataStoreTO
    to: DataStoreTO

    def snapshot(self, name: str) -> SnapshotObjectTO:
        return SnapshotObjectTO(path=f"{self.path.name}/{name}", dataStore=self.pool)

    def itself(self) -> VolumeObjectTO:
        return VolumeObjectTO(path=self.path.name, format=ImageFormat.QCOW2, dataStore=self.pool)

    def backup(self, name: str, parent: str | None = None) -> SnapshotObjectTO:
        below = self._key(parent) if parent else None
        return SnapshotObjectTO(path=self._key(name), dataStore=self.to, parentSnapshotPath=below)

    def key(self, name: str) -> str:
        return f"/{BUCKET}/{self._key(name)}"

    def _key(self, name: str) -> str:
        return f"{self.path.name}/{name}"


class Bench:
    """A directory with the pool, a sink, and what runs between them."""

    def __init__(self, work: Path, sink: S3Server) -> None:
        self.work = work
        self.sink = sink
        self.pool = work / "pools" / "pool"
        self.pool.mkdir(parents=True)
        self.settle(libvirt="none")

    def settle(self, *, libvirt: str) -> None:
        """What the agent is configured with from now on."""
        settings = {"pools": str(self.pool.parent), "ca_file": str(self.sink.ca_file), "libvirt": libvirt}
        (self.work / "settings.json").write_text(json.dumps(settings))

    def volume(self, name: str) -> Volume:
        pool = PrimaryDataStoreTO(uuid="bench", poolType="Filesystem", path=str(self.pool))
        keys = {"accessKey": self.sink.access_key, "secretKey": self.sink.secret_key}
        to = S3TO.model_validate({"endPoint": self.sink.endpoint, "bucketName": BUCKET, **keys})
        return Volume(self.pool / name, pool, to)

    def agent(self, title: str, volume: Volume, name: str, parent: str | None = None) -> Contestant:
        return self.copying(title, volume.snapshot(name), volume, name, parent)

    def copying(self, title: str, source: DataTO, volume: Volume, name: str, parent: str | None) -> Contestant:
        command = self.work / f"{volume.path.name}-{name}.json"
        command.touch(mode=0o600)
        target = _plain(volume.backup(name, parent))
        target["dataStore"]["secretKey"] = self.sink.secret_key
        copy = {"command": "Copy", "source": _plain(source), "destination": target}
        command.write_text(json.dumps(copy))
        return Contestant(title, [sys.executable, "-m", "benchmarks.copy_client", str(command), str(self.work)])

    def staged(self, title: str, upload: Sequence[str], volume: Volume, name: str) -> Contestant:
        """Of the same moment as the snapshot: the volume has not been written since."""
        temporary = self.work / "temporary"
        convert = f"qemu-img convert -f qcow2 -O qcow2 {volume.path} {temporary}"
        send = " ".join([*upload, str(temporary), f"s3:/{volume.key(name)}"])
        return Contestant(title, ["sh", "-ec", f"{convert}; {send}; rm {temporary}"], aws_environment(self.sink))

    def race(
        self, title: str, contestants: Sequence[Contestant], keys: Sequence[str], rounds: int, size: int
    ) -> list[Row]:
        """`keys`: what each of them makes. It must be there, whole or not, and goes before the next run."""

        def after(contestant: Contestant, sample: Sample) -> None:
            made = [key for key in keys if size_of(self.sink, key)]
            if not made and not sample.stalled:
                raise ContestantFailed(f"{contestant.name} sent nothing")
            for key in made:
                forget(self.sink, key, f"{key}.manifest.json")

        rows = compare(contestants, rounds=rounds, after=after)
        show(title, rows, size=size)
        return rows


def _plain(data: DataTO) -> dict[str, Any]:
    """As in a command; without its secrets."""
    content: dict[str, Any] = json.loads(data.model_dump_json(by_alias=True, exclude_none=True))
    return content


def config(work: Path) -> Config:
    return Config(
        agent=AgentSection(state_dir=work, runtime_dir=work),
        pools=PoolsSection(roots=(work / "pools",)),
        urls=UrlsSection(allow_http=True, allow_networks=("127.0.0.0/8",), ports=()),
        api=ApiSection(socket=work / "api.sock"),
    )


async def take_snapshots(work: Path, *snapshots: SnapshotObjectTO) -> None:
    parts = build(config(work))
    try:
        for snapshot in snapshots:
            name = (snapshot.path or "").rpartition("/")
            volume = VolumeObjectTO.model_validate(
                {"path": name[0], "format": "QCOW2", "dataStore": snapshot.store.model_dump()}
            )
            asked = SnapshotObjectTO(name=name[2], volume=volume, dataStore=snapshot.store)
            await parts.operations.create(verbs.Call(f"take-{name[2]}", HypervisorType.KVM), verbs.Create(asked))
    finally:
        await parts.aclose()


def write(volume: Volume, offsets: Sequence[int], length: int, pattern: int) -> None:
    commands = [part for offset in offsets for part in ("-c", f"write -q -P {pattern} {offset} {length}")]
    subprocess.run(["qemu-io", "-f", "qcow2", *commands, str(volume.path)], check=True, stdout=subprocess.DEVNULL)


def make_sparse(volume: Volume, virtual: int) -> None:
    """The same data in as many runs, evenly spread over a disk of that size."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(volume.path), str(virtual)], check=True)
    step = virtual // RUNS // MiB * MiB
    for number in range(RUNS):
        write(volume, [number * step], SPARSE_DATA // RUNS, 1 + number)


def full(bench: Bench, image: Path, rounds: int, tables: dict[str, list[Row]]) -> list[Verdict]:
    """All of a volume."""
    volume = bench.volume("volume")
    subprocess.run(["cp", "--sparse=always", str(image), str(volume.path)], check=True)
    asyncio.run(take_snapshots(bench.work, volume.snapshot("first")))
    s5cmd = [str(TOOLS / "s5cmd"), "--endpoint-url", bench.sink.endpoint, "cp"]
    aws = [str(TOOLS / "aws"), "s3", "cp", "--endpoint-url", bench.sink.endpoint, "--only-show-errors"]
    others = [
        bench.staged("qemu-img convert + s5cmd", s5cmd, volume, "staged"),
        bench.staged("qemu-img convert + aws s3 cp", aws, volume, "staged"),
    ]
    keys = [volume.key("first"), volume.key("staged")]
    title = f"full backup of {image.stat().st_size / GiB:.1f} GiB, disk of {write_rate(bench.work) / 1e6:.0f} MB/s"
    contestants = [bench.agent("storage-agent", volume, "first"), *others]
    rows = tables[title] = bench.race(title, contestants, keys, rounds, image.stat().st_size)
    ours = rows[0]
    return [
        *(at_least(f"full backup: time of {row.name} / ours", row.wall_s / ours.wall_s, 2) for row in rows[1:]),
        at_most("full backup: bytes written to disks, MiB", ours.extra["written"] / MiB, 1),
        at_most("full backup: peak RSS, MiB", ours.peak_rss_mib, 150),
    ]


def incremental(bench: Bench, rounds: int, tables: dict[str, list[Row]]) -> list[Verdict]:
    """One cluster in a hundred has changed since the full one; and the same on a volume 4096 times as large.

    Its bitmap alone, 16 MiB, is loaded and asked about in 2049 requests whatever has changed, for which qemu has no shorter
    way: a fifth of a second, beside a third for the changes. So that time follows the change shows against a full backup of
    the same volume; against an incremental one of a small volume it may take a little longer.
    """
    verdicts = []
    rows = []
    changed = 2 * GiB // CLUSTER // 100
    for name, virtual in (("small", 2 * GiB), ("large", SPARSE)):
        volume = bench.volume(name)
        make_sparse(volume, virtual)
        asyncio.run(take_snapshots(bench.work, volume.snapshot("full")))
        subprocess.run(bench.agent("full", volume, "full").argv, check=True, stdout=subprocess.DEVNULL)
        step = virtual // RUNS // MiB * MiB
        places = [
            run * step + cluster * CLUSTER for run in range(RUNS) for cluster in range(SPARSE_DATA // RUNS // CLUSTER)
        ]
        write(volume, sorted(random.Random(3).sample(places, changed)), CLUSTER, 200)
        asyncio.run(take_snapshots(bench.work, volume.snapshot("delta")))
        contestant = bench.agent(f"incremental, {virtual // GiB} GiB", volume, "delta", parent="full")
        sent = _sent_by(bench, contestant, volume.key("delta"))
        verdicts.append(
            at_most(
                f"incremental of {changed} clusters, {virtual // GiB} GiB: bytes sent / changed",
                sent / changed / CLUSTER,
                1.1,
            )
        )
        rows += bench.race(contestant.name, [contestant], [volume.key("delta")], rounds, sent)
        whole = bench.agent(f"full, {virtual // GiB} GiB", volume, "full")
        forget(bench.sink, volume.key("full"), f"{volume.key('full')}.manifest.json")
        rows += bench.race(whole.name, [whole], [volume.key("full")], rounds, SPARSE_DATA)
    tables["volumes of 2 GiB and 8 TiB"] = rows
    small, whole_small, large, whole_large = rows
    return [
        *verdicts,
        at_least("2 GiB: time of a full backup / of an incremental", whole_small.wall_s / small.wall_s, 2),
        at_least("8 TiB: time of a full backup / of an incremental", whole_large.wall_s / large.wall_s, 2),
        at_most("incremental: time for 8 TiB / for 2 GiB", large.wall_s / small.wall_s, 2.5),
        at_most(
            "full backup: time for 8 TiB / for 2 GiB with the same data", whole_large.wall_s / whole_small.wall_s, 1.5
        ),
        at_most("full backup of 8 TiB: peak RSS, MiB", whole_large.peak_rss_mib, 150),
    ]


def _sent_by(bench: Bench, contestant: Contestant, key: str) -> int:
    subprocess.run(contestant.argv, check=True, stdout=subprocess.DEVNULL)
    size = size_of(bench.sink, key)
    forget(bench.sink, key, f"{key}.manifest.json")
    return size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path("build/bench"), help="for the image")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tables: dict[str, list[Row]] = {}
    _, image = make_images(options.directory)
    with ExitStack() as stack:
        work = stack.enter_context(ram_disk(12 * GiB))
        servers = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="backup-")))
        sink = stack.enter_context(run_sink(servers, make_certificates(servers)))
        bench = Bench(work, sink)
        verdicts = full(bench, image, options.rounds, tables)
        verdicts += incremental(bench, options.rounds, tables)
    conclude(verdicts, tables, options.json)
    return 0 if all(verdict.met for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
