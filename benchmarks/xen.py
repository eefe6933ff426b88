"""A pool of XenServer hosts against the classical way: a template in S3 becomes a disk, a disk becomes an object in S3.

    python -m benchmarks.xen [--rounds N] [--only template|backup] [--directory DIRECTORY] [--json FILE]

The classical way goes through files of whoever is between the store and the pool: download, `qemu-img convert` to VHD, PUT by
curl; and GET by curl, upload. Once with AWS's own tool for the store, once with s5cmd, the fastest there is. The pool is a
double (`tests/doubles/xapi`), so no figure says how fast a real host is. It is the same for all, in a process of its own, over
TLS, and keeps its disks in memory. All share the machine's processors, the double too: what it costs all ways makes the ratios
smaller than they would be beside a real host.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import XenAPI

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
from benchmarks.image import RANDOM, TEXT, VIRTUAL, make_images
from benchmarks.sink import forget, run_sink, size_of
from benchmarks.tools import TOOLS, aws_environment
from benchmarks.xen_client import client
from hypervisors import verbs
from stores.contract import GiB, MiB
from stores.secret import Secret
from stores.to import (
    S3TO,
    DataTO,
    ImageFormat,
    PrimaryDataStoreTO,
    SnapshotObjectTO,
    TemplateObjectTO,
    VolumeObjectTO,
)
from tests.doubles import xapi
from tests.servers import S3Server, make_certificates, run_seaweed

BUCKET = "bench"
DATA = RANDOM + TEXT
USUAL, LARGEST = 8 * GiB, 2040 * GiB
CHANGED = 128
"""Blocks of 2 MiB that are written between two snapshots."""
CHANGE = bytes(range(256)) * 8192
"""The content of one."""
HELD = 100
"""MiB, the most that a transfer may need."""


class Pool:
    """The double: what is in it is looked at and put right through another client than the agent's."""

    def __init__(self, remote: xapi.Remote, work: Path) -> None:
        self.remote = remote
        self.sr = PrimaryDataStoreTO(uuid="shared", poolType="SR")
        self._session = XenAPI.Session(remote.access.urls[0], ignore_ssl=True)
        self._session.xenapi.login_with_password(remote.access.user, remote.access.password, "1.0", "benchmark")
        (self._sr,) = self._session.xenapi.SR.get_by_name_label("shared")
        self.ca_file, self._login = work / "pool.pem", work / "login"
        self.ca_file.write_text(remote.access.ca_pem)
        self._login.touch(mode=0o600)
        self.password_file = work / "password"
        self.password_file.touch(mode=0o600)
        self.password_file.write_text(remote.access.password)
        self._login.write_text(f'user = "{remote.access.user}:{remote.access.password}"\n')

    def uuid(self, name: str) -> str:
        (vdi,) = self._session.xenapi.VDI.get_by_name_label(name)
        return str(self._session.xenapi.VDI.get_uuid(vdi))

    def names(self) -> list[str]:
        """Of all disks."""
        return [vdi["name_label"] for vdi in self.remote.control("left")["vdis"].values()]

    def make(self, name: str, size: int, content: Path | None = None) -> str:
        """The uuid."""
        sr = self._session.xenapi.SR.get_uuid(self._sr)
        given = str(content) if content is not None else None
        return str(self.remote.control("make_vdi", sr=sr, size=size, content=given, name=name))

    def destroy(self, *names: str) -> None:
        for name in names:
            for vdi in self._session.xenapi.VDI.get_by_name_label(name):
                self._session.xenapi.VDI.destroy(vdi)
        self.remote.control("collect")

    def crossed(self) -> int:
        """Bytes of the last transfer."""
        return int(self.remote.control("transfers")[-1]["body"])

    def curl(self, vdi: str, rest: str, handler: str) -> str:
        """`rest`: of the query. The password is in a file."""
        url = f"{self.remote.access.urls[0]}/{handler}?vdi={vdi}&format=vhd{rest}"
        return f'curl -sfS --cacert {self.ca_file} -K {self._login} "{url}"'


class Bench:
    """A directory for what the two ways keep, and the servers between which they run."""

    def __init__(self, work: Path, pool: Pool, ca_file: Path) -> None:
        self.work = work
        self.pool = pool
        self.tables: dict[str, list[Row]] = {}
        access = pool.remote.access
        settings = {"hosts": access.urls, "user": access.user}
        settings |= {
            "password_file": str(pool.password_file),
            "pool_ca_file": str(pool.ca_file),
            "ca_file": str(ca_file),
        }
        (work / "settings.json").write_text(json.dumps(settings))

    def agent(self, title: str, source: DataTO, destination: DataTO) -> Contestant:
        command = self.work / f"{title.replace(' ', '-')}.json"
        command.touch(mode=0o600)
        command.write_text(json.dumps({"command": "Copy", "source": _told(source), "destination": _told(destination)}))
        return Contestant(title, [sys.executable, "-m", "benchmarks.xen_client", str(command), str(self.work)])

    def race(
        self,
        title: str,
        contestants: Sequence[Contestant],
        rounds: int,
        size: int,
        after: Callable[[Contestant, Sample], None],
    ) -> list[Row]:
        rows = self.tables[title] = compare(contestants, rounds=rounds, after=after)
        show(title, rows, size=size)
        return rows


def s3(server: S3Server) -> S3TO:
    keys = {"accessKey": server.access_key, "secretKey": server.secret_key}
    return S3TO.model_validate({"endPoint": server.endpoint, "bucketName": BUCKET, **keys})


def copiers(server: S3Server) -> dict[str, str]:
    """Commands that take a source and a destination, one of them a file. By their names."""
    return {
        "aws": f"{TOOLS / 'aws'} s3 cp --only-show-errors --endpoint-url {server.endpoint}",
        "s5cmd": f"{TOOLS / 's5cmd'} --endpoint-url {server.endpoint} cp",
    }


def _told(data: DataTO) -> dict[str, Any]:
    """As in a command, with the keys of its store."""
    content: dict[str, Any] = json.loads(data.model_dump_json(by_alias=True, exclude_none=True))
    match data.store:
        case S3TO(secretKey=Secret() as key):
            field = "imageDataStore" if "imageDataStore" in content else "dataStore"
            content[field]["secretKey"] = key.reveal()
    return content


# ---------------------------------------------------------------------------------------------------------- templates


def templates(bench: Bench, store: S3Server, images: Sequence[Path], rounds: int) -> list[Verdict]:
    """From a qcow2 object in S3. The same data in a disk of the largest size, too, which nobody converts in reasonable time."""
    pool, image = bench.pool, images[0]
    target = TemplateObjectTO(path="ours", imageDataStore=pool.sr)
    sources = [TemplateObjectTO(path=each.name, format=ImageFormat.QCOW2, imageDataStore=s3(store)) for each in images]
    classic = bench.work / "classic.uuid"
    classic.write_text(pool.make("classic", USUAL))
    got, vhd = bench.work / "image", bench.work / "image.vhd"

    def staged(name: str, copier: str) -> Contestant:
        script = [
            f"{copier} s3://{BUCKET}/{image.name} {got}",
            f"qemu-img convert -f qcow2 -O vpc -o subformat=dynamic,force_size=on {got} {vhd}",
            f"{pool.curl(f'$(cat {classic})', '', 'import_raw_vdi')} -H Expect: -T {vhd}",
            f"rm {got} {vhd}",
        ]
        return Contestant(f"{name} + qemu-img + curl", ["sh", "-ec", "; ".join(script)], aws_environment(store))

    ours, *others = [
        bench.agent("storage-agent", sources[0], target),
        *(staged(*copier) for copier in copiers(store).items()),
    ]
    reference = pool.make("reference", USUAL, image.with_suffix(".raw"))
    crossed: list[int] = []

    def after(contestant: Contestant, sample: Sample) -> None:
        name = "ours" if contestant is ours else "classic"
        if not pool.remote.control("same", vdi=pool.uuid(name), other=reference):
            raise ContestantFailed(f"{contestant.name} made another disk")
        if contestant is ours:
            crossed.append(pool.crossed())
        pool.destroy(name)
        if contestant is not ours:
            classic.write_text(pool.make("classic", USUAL))

    title = f"template of {DATA / GiB:g} GiB in {USUAL // GiB} GiB, disk of {write_rate(bench.work) / 1e6:.0f} MB/s"
    row, *rows = bench.race(title, [ours, *others], rounds, DATA, after)
    pool.destroy("classic", "reference")

    def gone(contestant: Contestant, sample: Sample) -> None:
        pool.destroy("ours")

    (large,) = bench.race(
        f"the same in {LARGEST // GiB} GiB", [bench.agent("large template", sources[1], target)], rounds, DATA, gone
    )
    return [
        *(at_least(f"template: time of {other.name} / ours", other.wall_s / row.wall_s, 2.5) for other in rows),
        at_most("template: bytes that crossed / data", max(crossed) / DATA, 1.01),
        at_most("template: bytes written to disks, MiB", row.extra["written"] / MiB, 1),
        at_most("template: memory for the transfer, MiB", row.extra["held"], HELD),
        at_most(f"template of {LARGEST // GiB} GiB: memory for the transfer, MiB", large.extra["held"], HELD),
    ]


# ------------------------------------------------------------------------------------------------------------ backups


async def prepare(bench: Bench, store: S3Server, image: Path, name: str) -> None:
    """A volume of the image, with the snapshots "full" and "delta", between which some blocks were written."""
    pool = bench.pool
    source = TemplateObjectTO(path=image.name, format=ImageFormat.QCOW2, imageDataStore=s3(store))
    volume = VolumeObjectTO(path=name, dataStore=pool.sr)
    async with client(bench.work) as made:
        call, operations = made.call(f"prepare-{name}"), made.operations
        await operations.copy(call, verbs.Copy(source, volume))
        await operations.create(call, verbs.Create(SnapshotObjectTO(name="full", volume=volume, dataStore=pool.sr)))
        change = bench.work / "change"
        change.write_bytes(CHANGE)
        for block in random.Random(3).sample(range(VIRTUAL // len(CHANGE)), CHANGED):
            pool.remote.control("write", vdi=pool.uuid(name), offset=block * len(CHANGE), content=str(change))
        await operations.create(call, verbs.Create(SnapshotObjectTO(name="delta", volume=volume, dataStore=pool.sr)))


def blocks(raw: Path) -> int:
    """How many blocks of a VHD have any data of a sparse file: what XAPI exports are whole ones."""
    found = set[int]()
    with raw.open("rb") as file:
        end, size = 0, raw.stat().st_size
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # no data behind `end`
                break
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.update(range(start // len(CHANGE), -(-end // len(CHANGE))))
    return len(found)


def snapshot(pool: Pool, volume: str, name: str) -> SnapshotObjectTO:
    return SnapshotObjectTO(path=f"{volume}/{name}", dataStore=pool.sr)


def backup(sink: S3Server, volume: str, name: str, parent: str | None = None) -> SnapshotObjectTO:
    below = f"{volume}/{parent}" if parent else None
    return SnapshotObjectTO(path=f"{volume}/{name}", dataStore=s3(sink), parentSnapshotPath=below)


def backups(bench: Bench, store: S3Server, sink: S3Server, images: Sequence[Path], rounds: int) -> list[Verdict]:
    """Of all of a disk, and of what changed. Of the largest disk too, as a VHD goes in order whatever its size."""
    verdicts = []
    times: dict[str, float] = {}
    held = blocks(images[0].with_suffix(".raw")) * len(CHANGE)
    for name, image in zip(("usual", "large"), images, strict=True):
        asyncio.run(prepare(bench, store, image, name))
        for kind, parent, size in (("full", None, held), ("delta", "full", CHANGED * len(CHANGE))):
            source, target = snapshot(bench.pool, name, kind), backup(sink, name, kind, parent)
            ours = bench.agent(f"{kind} of {name}", source, target)
            others = _staged(bench, sink, name, kind, parent) if name == "usual" else []
            keys = [f"/{BUCKET}/{name}/{kind}", f"/{BUCKET}/{name}/staged"]

            def after(contestant: Contestant, sample: Sample, keys: Sequence[str] = keys) -> None:
                made = [key for key in keys if size_of(sink, key)]
                if not made:
                    raise ContestantFailed(f"{contestant.name} sent nothing")
                for key in made:
                    forget(sink, key, f"{key}.manifest.json")

            title = f"{kind} backup of {name}, disk of {write_rate(bench.work) / 1e6:.0f} MB/s"
            rows = bench.race(title, [ours, *others], rounds, size, after)
            what = f"{kind} backup of {name} disk"
            verdicts += [
                at_least(f"{what}: time of {row.name} / ours", row.wall_s / rows[0].wall_s, 2) for row in rows[1:]
            ]
            verdicts += [
                at_most(
                    f"{what}: bytes that crossed / in blocks", bench.pool.crossed() / size, 1.01 if others else 1.1
                ),
                at_most(f"{what}: bytes written to disks, MiB", rows[0].extra["written"] / MiB, 1),
                at_most(f"{what}: memory for the transfer, MiB", rows[0].extra["held"], HELD),
            ]
            times[f"{name} {kind}"] = rows[0].wall_s
            subprocess.run(ours.argv, check=True, stdout=subprocess.DEVNULL)  # what the next one builds on
        bench.pool.destroy(*bench.pool.names())
    return [
        *verdicts,
        at_most(
            "full backup: time for 2040 GiB / for 8 GiB with the same data",
            times["large full"] / times["usual full"],
            1.5,
        ),
    ]


def _staged(bench: Bench, sink: S3Server, name: str, kind: str, parent: str | None) -> list[Contestant]:
    pool, temporary = bench.pool, bench.work / "temporary"
    base = f"&base={pool.uuid(frozen(name, parent))}" if parent else ""
    made = []
    for title, copier in copiers(sink).items():
        script = [
            f"{pool.curl(pool.uuid(frozen(name, kind)), base, 'export_raw_vdi')} -o {temporary}",
            f"{copier} {temporary} s3://{BUCKET}/{name}/staged",
            f"rm {temporary}",
        ]
        made.append(Contestant(f"curl + {title}", ["sh", "-ec", "; ".join(script)], aws_environment(sink)))
    return made


def frozen(volume: str, snapshot: str) -> str:
    """The name of a snapshot's disk."""
    return f".storage-agent/frozen/{volume}/{snapshot}"


# --------------------------------------------------------------------------------------------------------------- main


def make_sizes(directory: Path) -> list[Path]:
    """The usual image in disks of 8 GiB and of the largest size, and `usual.raw`."""
    raw, qcow2 = make_images(directory)
    made = []
    for name, size in (("xen-usual", USUAL), ("xen-large", LARGEST)):
        path = directory / f"{name}.qcow2"
        if not path.exists():
            partial = path.with_suffix(".partial")
            shutil.copyfile(qcow2, partial)
            subprocess.run(["qemu-img", "resize", "-q", "-f", "qcow2", str(partial), str(size)], check=True)
            partial.rename(path)
        made.append(path)
    (directory / "xen-usual.raw").unlink(missing_ok=True)
    (directory / "xen-usual.raw").symlink_to(raw.resolve())
    return made


@contextmanager
def servers(folder: Path, images: Sequence[Path]) -> Iterator[tuple[S3Server, S3Server]]:
    """One that has the images, and one that throws away what it is sent."""
    with ExitStack() as stack:
        store = stack.enter_context(run_seaweed(folder))
        s3_client = store.client()
        s3_client.create_bucket(Bucket=BUCKET)
        for image in images:
            s3_client.upload_file(str(image), BUCKET, image.name)
        s3_client.close()
        yield store, stack.enter_context(run_sink(folder, make_certificates(folder)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("template", "backup"))
    parser.add_argument("--directory", type=Path, default=Path("build/bench"), help="for the images")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    images = make_sizes(options.directory)
    verdicts: list[Verdict] = []
    with ExitStack() as stack:
        work = stack.enter_context(ram_disk(8 * GiB))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xen-")))
        disks = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xen-", dir="/dev/shm")))
        store, sink = stack.enter_context(servers(folder, images))
        pool = Pool(stack.enter_context(xapi.process(disks / "pool")), work)
        assert sink.ca_file is not None
        bench = Bench(work, pool, sink.ca_file)
        if options.only != "backup":
            verdicts += templates(bench, store, images, options.rounds)
        if options.only != "template":
            verdicts += backups(bench, store, sink, images, options.rounds)
    conclude(verdicts, bench.tables, options.json)
    return 0 if all(verdict.met for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
