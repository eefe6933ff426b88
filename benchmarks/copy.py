"""The main job against the classical way: an object becomes a volume, durable on disk when the clock stops.

    python -m benchmarks.copy [--rounds N] [--only COURSE] [--directory DIRECTORY] [--json FILE]

Staging is what clouds do today: download to a directory, `qemu-img convert` into the volume, remove the download. It runs with
the client that they use (aws) and with the fastest one for a plain URL (curl).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.disk import ram_disk, write_rate
from benchmarks.harness import Contestant, Row, Sample, Verdict, at_least, at_most, compare, conclude, show
from benchmarks.image import make_images
from benchmarks.tools import TOOLS
from stores.contract import GiB
from tests.servers import Certificates, S3Server, make_certificates, run_nginx, run_seaweed

BUCKET = "bench"
VOLUME = "volume"


@dataclass(frozen=True)
class Object:
    """Where an image is to be had: for us as a store, for aws as S3, for curl and qemu-img as a URL."""

    key: str
    format: str
    store: dict[str, object]
    endpoint: str
    url: str | None
    server: S3Server | None = None


class Bench:
    """One directory with the pool, the staging area and the commands."""

    def __init__(self, work: Path, certificates: Certificates, image: Path) -> None:
        self.work = work
        self.pool = work / "pools" / "pool"
        self.staging = work / "staging"
        self.ca_file = certificates.ca_file
        self.image = image
        self.pool.mkdir(parents=True)
        self.staging.mkdir()
        settings = {"pools": str(work / "pools"), "ca_file": str(certificates.ca_file)}
        (work / "settings.json").write_text(json.dumps(settings))

    def agent(self, source: Object) -> Contestant:
        command = self.work / "command.json"
        command.touch(mode=0o600)
        destination = {
            "type": "volume",
            "path": VOLUME,
            "format": "QCOW2",
            "dataStore": {"storeType": "primary", "uuid": "bench", "poolType": "Filesystem", "path": str(self.pool)},
        }
        template = {"type": "template", "path": source.key, "format": source.format, "imageDataStore": source.store}
        command.write_text(json.dumps({"command": "Copy", "source": template, "destination": destination}))
        return Contestant(
            "storage-agent", [sys.executable, "-m", "benchmarks.copy_client", str(command), str(self.work)]
        )

    def staged_by_aws(self, source: Object) -> Contestant:
        sign = "" if source.server else "--no-sign-request"
        download = f"{TOOLS / 'aws'} s3 cp --only-show-errors {sign} --endpoint-url {source.endpoint}"
        return self._staged("aws s3 cp + qemu-img", f"{download} s3://{BUCKET}/{source.key}", source)

    def staged_by_curl(self, source: Object) -> Contestant:
        return self._staged("curl + qemu-img", f"curl -sf --cacert {self.ca_file} {source.url} -o", source)

    def tuned_qemu_img(self, source: Object) -> Contestant:
        """What nobody can do for a signed URL, and the best that qemu-img does for a plain one."""
        options = f"driver={source.format.lower()},file.driver=http,file.url={source.url}"
        convert = f"qemu-img convert -t none -W -m 8 --image-opts {options} -O qcow2 {self.pool / VOLUME}"
        return Contestant("qemu-img -t none -W -m 8", ["sh", "-ec", f"{convert}; sync {self.pool / VOLUME}"])

    def _staged(self, name: str, download: str, source: Object) -> Contestant:
        staged, volume = self.staging / "image", self.pool / VOLUME
        convert = f"qemu-img convert -f {source.format.lower()} -O qcow2 {staged} {volume}"
        env = {"AWS_CA_BUNDLE": str(self.ca_file), "AWS_DEFAULT_REGION": "us-east-1"}
        if source.server is not None:
            env |= {"AWS_ACCESS_KEY_ID": source.server.access_key, "AWS_SECRET_ACCESS_KEY": source.server.secret_key}
        return Contestant(name, ["sh", "-ec", f"{download} {staged}; {convert}; sync {volume}; rm {staged}"], env)

    def after(self, contestant: Contestant, sample: Sample) -> None:
        """The volume has the image's content, whoever made it; then it goes."""
        volume = self.pool / VOLUME
        if not sample.stalled:
            compared = ["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(self.image), str(volume)]
            subprocess.run(compared, check=True, stdout=subprocess.DEVNULL)
        for left in (*self.pool.iterdir(), *self.staging.iterdir()):
            if left.is_file():
                left.unlink()
        shutil.rmtree(self.pool / ".storage-agent", ignore_errors=True)
        subprocess.run(["sync"], check=True)


def http_object(base: str, key: str, image_format: str) -> Object:
    store: dict[str, object] = {"storeType": "image", "uri": f"{base}/{BUCKET}"}
    return Object(key, image_format, store, base, f"{base}/{BUCKET}/{key}")


def s3_object(endpoint: str, key: str, image_format: str, server: S3Server | None) -> Object:
    keys = {"accessKey": server.access_key, "secretKey": server.secret_key} if server else {}
    store: dict[str, object] = {"storeType": "s3", "endPoint": endpoint, "bucketName": BUCKET, **keys}
    return Object(key, image_format, store, endpoint, f"{endpoint}/{BUCKET}/{key}", server)


@contextmanager
def servers(work: Path, images: Sequence[Path], certificates: Certificates) -> Iterator[tuple[str, str, S3Server]]:
    """nginx plain, nginx over TLS, and SeaweedFS, each with the images in `bench/`."""
    with ExitStack() as stack:
        for name in ("nginx", "weed"):
            (work / name).mkdir()
        nginx = stack.enter_context(run_nginx(work / "nginx", certificates))
        (nginx.root / BUCKET).mkdir()
        for image in images:
            (nginx.root / BUCKET / image.name).symlink_to(image.resolve())
        weed = stack.enter_context(run_seaweed(work / "weed"))
        client = weed.client()
        client.create_bucket(Bucket=BUCKET)
        for image in images:
            client.upload_file(str(image), BUCKET, image.name)
        client.close()
        yield nginx.url("").rstrip("/"), nginx.url("", tls=True).rstrip("/"), weed


def ratio(rows: Sequence[Row], other: int, what: str) -> float:
    return float(getattr(rows[other], what) / getattr(rows[0], what))


@dataclass(frozen=True)
class Sources:
    """The image on every server."""

    nginx: Object
    nginx_tls: Object
    weed: Object
    weed_raw: Object
    nginx_raw: Object  # as S3, so that we have to go through the bridge, and as a plain URL for qemu-img


class Courses:
    """The races, each a table."""

    def __init__(self, bench: Bench, sources: Sources, rounds: int, size: int) -> None:
        self.tables: dict[str, list[Row]] = {}
        self._bench = bench
        self._sources = sources
        self._rounds = rounds
        self._size = size

    def same_format(self, disk: str) -> list[Verdict]:
        """The main job on a fast disk, in every way that it may arrive."""
        bench, given = self._bench, self._sources
        ours, aws, curl = bench.agent, bench.staged_by_aws, bench.staged_by_curl
        plain = self._race(f"qcow2 from nginx to a qcow2 volume, {disk}", ours, aws, curl, source=given.nginx)
        tls = self._race(f"the same over TLS, {disk}", ours, aws, curl, source=given.nginx_tls)
        weed = self._race(f"qcow2 from SeaweedFS to a qcow2 volume, {disk}", ours, aws, source=given.weed)
        return [
            at_least("nginx, same format: time of staging / ours", ratio(plain, 1, "wall_s"), 5),
            at_least("nginx, same format: CPU of staging / ours", ratio(plain, 1, "cpu_s"), 6),
            at_most("bytes written / size of the volume", plain[0].extra["written"] / self._size, 1.02),
            at_least("nginx over TLS, same format: time of staging / ours", ratio(tls, 1, "wall_s"), 4),
            at_least("SeaweedFS, same format: time of staging / ours", ratio(weed, 1, "wall_s"), 2.5),
            at_least("SeaweedFS, same format: CPU of staging / ours", ratio(weed, 1, "cpu_s"), 6),
        ]

    def conversion(self, disk: str) -> list[Verdict]:
        """Raw to qcow2, through the bridge."""
        bench, given = self._bench, self._sources
        ours, aws = bench.agent, bench.staged_by_aws
        weed = self._race(f"raw from SeaweedFS to a qcow2 volume, {disk}", ours, aws, source=given.weed_raw)
        title = f"raw from nginx to a qcow2 volume, {disk}"
        plain = self._race(title, ours, bench.tuned_qemu_img, aws, source=given.nginx_raw)
        return [
            at_least("SeaweedFS, conversion: time of staging / ours", ratio(weed, 1, "wall_s"), 4),
            at_most("conversion: our time / tuned qemu-img from a URL", 1 / ratio(plain, 1, "wall_s"), 1.3),
            at_least("nginx, conversion: time of staging / ours", ratio(plain, 2, "wall_s"), 4),
        ]

    def on_own_disk(self, disk: str) -> None:
        """For comparison, without a goal: what is left of it where the disk is the bottleneck."""
        bench = self._bench
        title = f"qcow2 from nginx to a qcow2 volume, {disk}"
        self._race(title, bench.agent, bench.staged_by_aws, source=self._sources.nginx)

    def _race(self, title: str, *contestants: Callable[[Object], Contestant], source: Object) -> list[Row]:
        rows = compare([make(source) for make in contestants], rounds=self._rounds, after=self._bench.after)
        show(title, rows, size=self._size)
        self.tables[title] = rows
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path("build/bench"), help="for images, servers and slow disk")
    parser.add_argument("--only", choices=["same", "conversion", "own-disk"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    raw, qcow2 = make_images(options.directory)
    size = qcow2.stat().st_size
    verdicts: list[Verdict] = []
    tables: dict[str, list[Row]] = {}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory.resolve())))
        fast = stack.enter_context(ram_disk(8 * GiB))
        certificates = make_certificates(work)
        plain, tls, weed = stack.enter_context(servers(work, (raw, qcow2), certificates))
        sources = Sources(
            nginx=http_object(plain, qcow2.name, "QCOW2"),
            nginx_tls=http_object(tls, qcow2.name, "QCOW2"),
            weed=s3_object(weed.endpoint, qcow2.name, "QCOW2", weed),
            weed_raw=s3_object(weed.endpoint, raw.name, "RAW", weed),
            nginx_raw=s3_object(plain, raw.name, "RAW", None),
        )
        courses = Courses(Bench(fast, certificates, qcow2), sources, options.rounds, size)
        disk = f"disk of {write_rate(fast) / 1e6:.0f} MB/s"
        if options.only in (None, "same"):
            verdicts += courses.same_format(disk)
        if options.only in (None, "conversion"):
            verdicts += courses.conversion(disk)
        tables |= courses.tables
        if options.only in (None, "own-disk"):
            courses = Courses(Bench(work / "slow", certificates, qcow2), sources, options.rounds, size)
            courses.on_own_disk(f"own disk of {write_rate(work) / 1e6:.0f} MB/s")
            tables |= courses.tables
    conclude(verdicts, tables, options.json)
    sys.exit(0 if all(verdict.met for verdict in verdicts) else 1)


if __name__ == "__main__":
    main()
