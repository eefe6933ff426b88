"""The byte path against others: one object from nginx into a file on tmpfs and on a disk, plain and over TLS.

    python -m benchmarks.bytes [--size MIB] [--rounds N] [--disk DIRECTORY] [--json FILE]

Prints tables with ratios and the verdict on each goal; exits 1 when a goal is missed. To a disk only CPU is compared: ours
writes to the device, the others leave their bytes in the page cache for somebody else's clock.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

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
from benchmarks.tools import TOOLS
from stores.contract import MiB
from tests.servers import NginxServer, make_certificates, run_nginx

PYTHON = sys.executable
MANY = 8


def make_object(path: Path, size: int) -> None:
    """Three quarters incompressible, one quarter text, in alternating runs of 4 MiB."""
    rng = random.Random(7)
    path.parent.mkdir(exist_ok=True)
    lines = (b"%016x a line of text that compresses\n" % number for number in range(4 * MiB // 32))
    text = b"".join(lines)
    with path.open("wb") as file:
        for number in range(-(-size // (4 * MiB))):
            run = text[: 4 * MiB] if number % 4 == 3 else rng.randbytes(4 * MiB)
            file.write(run[: size - file.tell()])


class Course:
    """One object on one server, to be fetched into one directory."""

    def __init__(self, nginx: NginxServer, size: int, directory: Path, *, tls: bool, key: str = "object") -> None:
        self.size = size
        self.destination = directory / "fetched"
        self._nginx = nginx
        self._tls = tls
        self._endpoint = nginx.url("", tls=tls).rstrip("/")
        self._url = f"{self._endpoint}/bench/{key}"

    def python(self, name: str, label: str | None = None, *more: str) -> Contestant:
        argv = [PYTHON, "-m", "benchmarks.bytes_client", name, self._url, str(self.destination)]
        ca_file = ["--ca-file", str(self._nginx.ca_file)]
        return Contestant(label or name, [*argv, "--size", str(self.size), *ca_file, *more])

    def tools(self) -> list[Contestant]:
        s5cmd = [str(TOOLS / "s5cmd"), "--no-sign-request", "--endpoint-url", self._endpoint]
        rclone = [str(TOOLS / "rclone"), "copyto", ":s3:bench/object", str(self.destination), "--config", "/dev/null"]
        rclone += ["--s3-provider", "Other", "--s3-endpoint", self._endpoint, "--s3-no-check-bucket"]
        curl = ["curl", "-sf", "-o", str(self.destination), self._url]
        if self._tls:
            s5cmd.append("--no-verify-ssl")
            rclone += ["--ca-cert", str(self._nginx.ca_file)]
            curl += ["--cacert", str(self._nginx.ca_file)]
        environment = {"AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        return [
            Contestant("s5cmd", [*s5cmd, "cp", "s3://bench/object", str(self.destination)], environment),
            Contestant("rclone", rclone, environment),
            Contestant("curl", curl),
        ]

    def check(self, contestant: Contestant, sample: Sample) -> None:
        """What was fetched is all there; gone before the next run, and on its way to no disk any more."""
        for path in self.destination.parent.glob("fetched*"):
            if path.stat().st_size != self.size and not sample.stalled:
                raise ContestantFailed(f"{contestant.name} left {path.stat().st_size} of {self.size} bytes")
            path.unlink()
        os.sync()


def by_name(rows: Sequence[Row]) -> Mapping[str, Row]:
    return {row.name: row for row in rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="of the object, in MiB (default 1024)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a directory on a disk")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    size = options.size * MiB
    tables: dict[str, Sequence[Row]] = {}
    verdicts: list[Verdict] = []
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="bytes-") as memory,
        tempfile.TemporaryDirectory(dir=options.disk, prefix="bytes-") as disk,
    ):
        server = Path(memory) / "server"
        server.mkdir()
        Path(memory).chmod(0o755)
        with run_nginx(server, make_certificates(server)) as nginx:
            make_object(nginx.root / "bench" / "object", size)
            make_object(nginx.root / "bench" / "part", size // 4)
            for tls in (False, True):
                scheme = "TLS" if tls else "plain HTTP"
                tmpfs = Course(nginx, size, Path(memory), tls=tls)
                title = f"{scheme} to tmpfs"
                others = [*tmpfs.tools(), tmpfs.python("obstore"), tmpfs.python("aiobotocore")]
                rows = compare([tmpfs.python("ours"), *others], rounds=options.rounds, after=tmpfs.check)
                show(title, rows, size=size)
                tables[title] = rows
                if not tls:
                    verdicts += tmpfs_verdicts(by_name(rows))
            for place, directory in (("tmpfs", memory), ("disk", disk)):
                title = f"with a digest, to {place}"
                course = Course(nginx, size, Path(directory), tls=False)
                hashed = [course.python("ours", f"ours, {name}", "--digest", name) for name in ("sha256", "crc32c")]
                rows = compare([course.python("ours"), *hashed], rounds=options.rounds, after=course.check)
                show(title, rows, size=size)
                tables[title] = rows
                verdicts += [
                    at_least(f"{row.name}, to {place}: rate by rate without", rows[0].wall_s / row.wall_s, 0.7)
                    for row in rows[1:]
                ]
            title = "plain HTTP to disk"
            course = Course(nginx, size, Path(disk), tls=False)
            rows = compare([course.python("ours"), *course.tools()], rounds=options.rounds, after=course.check)
            show(title, rows, size=size)
            tables[title] = rows
            found = by_name(rows)
            verdicts.append(at_least("to disk: s5cmd's CPU by ours", found["s5cmd"].cpu_s / rows[0].cpu_s, 2))
            for tls in (False, True):
                scheme = "TLS" if tls else "plain HTTP"
                course = Course(nginx, size // 4, Path(memory), tls=tls, key="part")
                rows = compare([course.python("many", f"{MANY} at once")], rounds=options.rounds, after=course.check)
                title = f"{MANY} transfers at once, {scheme}"
                show(title, rows, size=size // 4 * MANY)
                tables[title] = rows
                verdicts.append(at_most(f"{title}: peak RSS, MiB", rows[0].peak_rss_mib, 150))
                verdicts.append(at_most(f"{title}: event-loop lag p99, ms", rows[0].extra["lag_p99_ms"], 20))
    conclude(verdicts, tables, options.json)
    return 0 if all(verdict.met for verdict in verdicts) else 1


def tmpfs_verdicts(rows: Mapping[str, Row]) -> list[Verdict]:
    best = min((rows[name] for name in ("s5cmd", "rclone", "curl", "obstore")), key=lambda row: row.wall_s)
    return [
        at_least(f"to tmpfs: rate by that of the best other ({best.name})", best.wall_s / rows["ours"].wall_s, 1.0),
        at_least("to tmpfs: rate by aiobotocore's", rows["aiobotocore"].wall_s / rows["ours"].wall_s, 2.0),
    ]


if __name__ == "__main__":
    sys.exit(main())
