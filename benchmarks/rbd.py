"""A template in S3 becomes an image of Ceph's RBD, and a clone of it a volume, against the classical way.

    python -m benchmarks.rbd [--rounds N] [--directory DIRECTORY] [--own-disk] [--json FILE]

The classical way goes through files of the host: download, `qemu-img convert` to raw, `rbd import`; then a clone by `rbd`.
Beside it runs what CloudStack does today: download to secondary storage, `qemu-img convert` from there into the cluster; clone.
The cluster is a real one on loopback that keeps everything in memory. It shares the machine's processors with the store and
with all ways, which makes every ratio smaller than it would be beside servers of their own. The host's files are on a disk
in memory or, with `--own-disk`, on that of DIRECTORY.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

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
from benchmarks.image import RANDOM, TEXT, make_images
from benchmarks.tools import TOOLS, aws_environment
from stores.contract import GiB, MiB
from tests.ceph import Ceph, run_ceph
from tests.servers import S3Server, run_seaweed

BUCKET, KEY = "bench", "template.qcow2"
DATA = RANDOM + TEXT


def ours(work: Path, ceph: Ceph, pool: str, store: S3Server) -> Contestant:
    work.mkdir(mode=0o700)
    s3 = {
        "storeType": "s3",
        "endPoint": store.endpoint,
        "bucketName": BUCKET,
        "accessKey": store.access_key,
        "secretKey": store.secret_key,
    }
    rbd = {
        "storeType": "primary",
        "uuid": "bench",
        "poolType": "RBD",
        "host": "127.0.0.1",
        "port": ceph.port,
        "path": pool,
        "details": {"user": "vm", "secret": ceph.key},
    }
    template = {"type": "template", "path": "template", "imageDataStore": rbd, "format": "QCOW2"}
    source = {"type": "template", "path": KEY, "imageDataStore": s3, "format": "QCOW2"}
    files: dict[str, Any] = {
        "config.json": {
            "agent": {"state_dir": str(work), "runtime_dir": str(work)},
            "api": {"socket": str(work / "api.sock")},
            "urls": {"allow_http": True, "allow_networks": ["127.0.0.0/8"], "ports": []},
        },
        "template.json": {"command": "Copy", "source": source, "destination": template},
        "clone.json": {
            "command": "Copy",
            "source": template,
            "destination": {"type": "volume", "uuid": "volume", "dataStore": rbd},
        },
    }
    for name, content in files.items():
        (work / name).touch(mode=0o600)
        (work / name).write_text(json.dumps(content))
    return Contestant("storage-agent", [sys.executable, "-m", "benchmarks.rbd_client", str(work)])


def classical(work: Path, ceph: Ceph, pool: str, store: S3Server) -> Contestant:
    raw = work / "image.raw"
    write = [
        f"qemu-img convert -f qcow2 -O raw {work / 'image'} {raw}",
        f"rbd -c {ceph.conf} import --no-progress {raw} {pool}/template",
        f"rm {raw}",
    ]
    return downloaded("s5cmd + qemu-img + rbd import", write, work, ceph, pool, store)


def straight(work: Path, ceph: Ceph, pool: str, store: S3Server) -> Contestant:
    write = [f"qemu-img convert -f qcow2 -O raw {work / 'image'} rbd:{pool}/template:conf={ceph.conf}"]
    return downloaded("s5cmd + qemu-img to RBD", write, work, ceph, pool, store)


def downloaded(name: str, write: Sequence[str], work: Path, ceph: Ceph, pool: str, store: S3Server) -> Contestant:
    """`write` makes the template of the file `image` in `work`."""
    got, rbd = work / "image", f"rbd -c {ceph.conf}"
    script = [
        f"{TOOLS / 's5cmd'} --endpoint-url {store.endpoint} cp s3://{BUCKET}/{KEY} {got}",
        *write,
        f"{rbd} snap create --no-progress {pool}/template@base",
        f"{rbd} snap protect {pool}/template@base",
        f"{rbd} clone {pool}/template@base {pool}/volume",
        f"rm {got}",
    ]
    return Contestant(name, ["sh", "-ec", "; ".join(script)], aws_environment(store))


def remove(ceph: Ceph, pool: str) -> None:
    """Everything that a run left in the pool."""
    ceph.tool("rbd", "rm", "--no-progress", f"{pool}/volume")
    for snapshot in json.loads(ceph.tool("rbd", "snap", "ls", "--format", "json", f"{pool}/template")):
        ceph.tool("rbd", "snap", "unprotect", f"{pool}/template@{snapshot['name']}")
    ceph.tool("rbd", "snap", "purge", "--no-progress", f"{pool}/template")
    ceph.tool("rbd", "rm", "--no-progress", f"{pool}/template")
    for name in ceph.objects(pool):
        ceph.tool("rados", "-p", pool, "rm", name)


def race(work: Path, image: Path, ceph: Ceph, store: S3Server, rounds: int) -> tuple[list[Row], str]:
    files, pool = work / "files", ceph.new_pool()
    files.mkdir()

    def after(contestant: Contestant, sample: Sample) -> None:
        made = f"rbd:{pool}/volume:conf={ceph.conf}"
        same = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(image), made]
        if subprocess.run(same, stdout=subprocess.DEVNULL, check=False).returncode != 0:
            raise ContestantFailed(f"{contestant.name} made another disk")
        remove(ceph, pool)

    contestants = [
        ours(work / "agent", ceph, pool, store),
        classical(files, ceph, pool, store),
        straight(files, ceph, pool, store),
    ]
    rows = compare(contestants, rounds=rounds, after=after)
    title = f"template of {DATA / GiB:g} GiB and a clone, disk of {write_rate(work) / 1e6:.0f} MB/s"
    show(title, rows, size=DATA)
    return rows, title


@contextmanager
def own_disk(directory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rbd-", dir=directory.resolve()) as made:
        yield Path(made)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path("build/bench"), help="for the images")
    parser.add_argument("--own-disk", action="store_true", help="keep the host's files there too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    _, image = make_images(options.directory)
    with ExitStack() as stack:
        work = stack.enter_context(own_disk(options.directory) if options.own_disk else ram_disk(16 * GiB))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rbd-")))
        for name in ("s3", "ceph"):
            (folder / name).mkdir()
        store = stack.enter_context(run_seaweed(folder / "s3"))
        client = store.client()
        client.create_bucket(Bucket=BUCKET)
        client.upload_file(str(image), BUCKET, KEY)
        client.close()
        ceph = stack.enter_context(run_ceph(folder / "ceph"))
        rows, title = race(work, image, ceph, store, options.rounds)
    mine, theirs, _ = rows
    verdicts: list[Verdict] = [
        at_least("template to RBD and clone: time of the classical way / ours", theirs.wall_s / mine.wall_s, 3),
        at_most("template to RBD: bytes written to disks of the host, MiB", mine.extra["written"] / MiB, 1),
    ]
    conclude(verdicts, {title: rows}, options.json)
    return 0 if all(verdict.met for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
