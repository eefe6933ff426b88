"""Sending a file against others: one file on tmpfs into a server that throws it away, plain and over TLS.

    python -m benchmarks.upload [--size MIB] [--rounds N] [--json FILE]

Ours sends the file in parts with checksums that the server repeats. The sink computes none, so that what is measured is the
client alone; `tests/` prove against real servers what arrives.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import sys
import tempfile
from pathlib import Path

from benchmarks.bytes import make_object
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
    measured,
    show,
)
from benchmarks.sink import run_sink
from benchmarks.tools import TOOLS, aws_environment
from stores.backends.s3 import S3Store
from stores.contract import MiB, Silent
from stores.secret import Secret
from stores.settings import StoreSettings
from stores.to import S3TO
from stores.transfer.engine import TransferEngine
from stores.transfer.sending import send_all
from tests.servers import S3Server, make_certificates

OBJECT = "/bench/object"


class Course:
    """One file to be sent to one server."""

    def __init__(self, sink: S3Server, source: Path, size: int, *, tls: bool) -> None:
        self._sink = sink
        self._source = source
        self._size = size
        self._endpoint = sink.tls_endpoint if tls else sink.endpoint
        self._tls = tls

    def contestants(self) -> list[Contestant]:
        ours = [sys.executable, "-m", "benchmarks.upload", "--send", str(self._source), "--to", str(self._endpoint)]
        s5cmd = [str(TOOLS / "s5cmd"), "--endpoint-url", str(self._endpoint)]
        aws = [str(TOOLS / "aws"), "s3", "cp", "--endpoint-url", str(self._endpoint), "--only-show-errors"]
        if self._tls:
            ours += ["--ca-file", str(self._sink.ca_file)]
            s5cmd.append("--no-verify-ssl")
            aws += ["--ca-bundle", str(self._sink.ca_file)]
        environment = aws_environment(self._sink)
        target = f"s3:/{OBJECT}"
        return [
            Contestant("ours", ours),
            Contestant("s5cmd", [*s5cmd, "cp", str(self._source), target], environment),
            Contestant("aws s3 cp", [*aws, str(self._source), target], environment),
        ]

    def check(self, contestant: Contestant, sample: Sample) -> None:
        """All of it was sent, and is forgotten before the next run."""
        connection = http.client.HTTPConnection("127.0.0.1", self._sink.port)
        try:
            connection.request("HEAD", OBJECT)
            found = connection.getresponse()
            found.read()
            if int(found.headers.get("Content-Length", -1)) != self._size:
                raise ContestantFailed(f"{contestant.name} sent {found.headers.get('Content-Length')} bytes")
            connection.request("DELETE", OBJECT)
            connection.getresponse().read()
        finally:
            connection.close()


def send(source: Path, endpoint: str, ca_file: Path | None) -> None:
    """Ours. The client is open before the clock starts, as that of a daemon is."""
    with asyncio.Runner() as runner:
        engine = TransferEngine()
        to = S3TO(endPoint=endpoint, accessKey="key", secretKey=Secret("secret"), bucketName="bench")
        store = S3Store(to, StoreSettings(ca_file=ca_file), engine)

        async def open_client() -> None:
            assert await anext(store.list(), None) is None

        async def upload() -> None:
            async with store.upload("object", source, token="bench") as pending:
                await send_all(pending, progress=Silent())

        async def close() -> None:
            await store.aclose()
            await engine.aclose()

        runner.run(open_client())
        measured(lambda: runner.run(upload()) or {})
        runner.run(close())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="of the file, in MiB (default 1024)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--send", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--to", help=argparse.SUPPRESS)
    parser.add_argument("--ca-file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        send(options.send, options.to, options.ca_file)
        return 0
    size = options.size * MiB
    tables: dict[str, list[Row]] = {}
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="upload-") as name:
        directory = Path(name)
        source = directory / "source"
        make_object(source, size)
        with run_sink(directory, make_certificates(directory)) as sink:
            for tls in (False, True):
                course = Course(sink, source, size, tls=tls)
                title = "TLS" if tls else "plain HTTP"
                rows = tables[title] = compare(course.contestants(), rounds=options.rounds, after=course.check)
                show(title, rows, size=size)
                ours = rows[0]
                for row in rows[1:]:
                    rate = row.wall_s / ours.wall_s
                    verdicts.append(at_least(f"upload, {title}: rate by that of {row.name}", rate, 1 if tls else 2))
                    if not tls:
                        verdicts.append(
                            at_most(f"upload, plain: CPU by that of {row.name}", ours.cpu_s / row.cpu_s, 0.25)
                        )
                verdicts.append(at_most(f"upload, {title}: peak RSS, MiB", ours.peak_rss_mib, 150))
    conclude(verdicts, tables, options.json)
    return 0 if all(verdict.met for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
