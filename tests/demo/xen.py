"""`make demo-xen`: the daemon drives a pool of XenServer hosts: no file, no NFS, no staging, S3 is the only secondary storage.

THE POOL IS A DOUBLE: `tests/doubles/xapi`, in a process of its own, made after XAPI's public sources and documents. No real
host is in this demo. The daemon, its command line, the S3 server and qemu-img are real.

A qcow2 template in S3 becomes a disk of a storage repository, and that a volume's. A guest writes; a snapshot is backed up in
full, then what changed since; the restored volume is compared with the one that was backed up. The files that the daemon
makes are looked for all the time. Everything lives in temporary directories, which are removed at the end.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.agent_process import AGENT, AgentHost, agent_host
from tests.demo.stage import compare, expect, make_template, say
from tests.doubles import xapi
from tests.files_seen import Watch
from tests.guest import GiB, MiB
from tests.servers import S3Server, run_seaweed
from tests.xen_agent import XEN_ENVIRONMENT, in_s3, in_sr, xen_options

BUCKET, TEMPLATE = "secondary", "template/tmpl/2/201/debian.qcow2"
DATA = 48 * MiB
SR = "shared"


@dataclass
class Site:
    agent: AgentHost
    pool: xapi.Remote
    s3: S3Server
    directory: Path

    def cli(self, *arguments: str | Path) -> None:
        """The command line where the reader sees it."""
        shown = [argument.name if isinstance(argument, Path) else argument for argument in arguments]
        print("$ storage-agent", *shown, flush=True)
        code = subprocess.run([AGENT, *arguments], env=self.agent.env(), check=False).returncode
        expect(code == 0, f"storage-agent {arguments[0]} ended with {code}")

    def submit(self, name: str, command: dict[str, Any]) -> None:
        self.cli("submit", self.agent.write(command, f"{name}.json"))

    def copy(self, name: str, source: dict[str, Any], destination: dict[str, Any]) -> None:
        self.submit(name, {"command": "Copy", "source": source, "destination": destination})

    def vdi(self, name: str) -> str:
        """The uuid of the one VDI that is called so."""
        (found,) = (uuid for uuid, record in self.pool.control("left")["vdis"].items() if record["name_label"] == name)
        return str(found)

    def content(self, name: str) -> Path:
        """What a guest reads from that VDI, saved behind the daemon's back."""
        path = self.directory / f"{name}.raw"
        self.pool.control("save", vdi=self.vdi(name), path=str(path))
        return path

    def write(self, name: str, offset: int, data: bytes) -> None:
        """As a guest."""
        (self.directory / "written").write_bytes(data)
        self.pool.control("write", vdi=self.vdi(name), offset=offset, content=str(self.directory / "written"))

    def size_in_s3(self, key: str) -> int:
        client = self.s3.client()
        try:
            return int(client.head_object(Bucket=BUCKET, Key=key)["ContentLength"])
        finally:
            client.close()

    def crossed(self) -> int:
        """Bytes that hosts were sent by PUT so far."""
        return sum(int(each["body"]) for each in self.pool.control("transfers") if each["kind"] == "import")


def template_to_volume(site: Site, image: Path) -> None:
    template = in_s3(site.s3, BUCKET, "template", TEMPLATE, format="QCOW2")
    destination = in_sr(SR, "template", "t-1")
    say("what would be done, and why (runs nothing)")
    asked = {"command": "Copy", "source": template, "destination": destination}
    site.cli("explain", site.agent.write(asked, "template.json"))
    say("one command: the qcow2 in S3 becomes a disk of the storage repository; zeroes are not sent")
    site.copy("template", template, destination)
    print(f"the hosts were sent {site.crossed() / MiB:.1f} MiB for {GiB // MiB} MiB virtual", flush=True)
    expect(DATA <= site.crossed() < DATA * 1.2, "something else than the data crossed the wire")
    compare(image, "qcow2", site.content("t-1"), "raw")

    say("a volume of that template: a clone, without a byte on the wire")
    before = site.crossed()
    site.copy("clone", in_sr(SR, "template", "t-1"), in_sr(SR, "volume", "v-1"))
    expect(site.crossed() == before, "a clone should send nothing")
    compare(image, "qcow2", site.content("v-1"), "raw")


def backups(site: Site) -> None:
    say("a guest writes; a snapshot, and a full backup into S3, as XAPI exports it")
    site.write("v-1", 300 * MiB, random.Random(1).randbytes(4 * MiB))
    site.submit("monday", {"command": "CreateObject", "data": in_sr(SR, "snapshot", "v-1/monday")})
    full = in_s3(site.s3, BUCKET, "snapshot", "snapshots/v-1/monday")
    site.copy("full", in_sr(SR, "snapshot", "v-1/monday"), full)

    say("the guest goes on; the next backup has what changed since")
    site.write("v-1", 0, random.Random(2).randbytes(2 * MiB))
    site.write("v-1", 700 * MiB, random.Random(3).randbytes(3 * MiB))
    site.submit("tuesday", {"command": "CreateObject", "data": in_sr(SR, "snapshot", "v-1/tuesday")})
    parent = {"parentSnapshotPath": "snapshots/v-1/monday"}
    changes = in_s3(site.s3, BUCKET, "snapshot", "snapshots/v-1/tuesday", **parent)
    site.copy("changes", in_sr(SR, "snapshot", "v-1/tuesday"), changes)
    sizes = [site.size_in_s3(f"snapshots/v-1/{name}") for name in ("monday", "tuesday")]
    print(f"in S3: full {sizes[0] / MiB:.1f} MiB, changes {sizes[1] / MiB:.1f} MiB", flush=True)
    expect(sizes[1] < sizes[0] // 4, "the second backup should have what changed only")

    say("restored into a new volume, full backup and changes together, and compared")
    at_tuesday = site.content("v-1")
    restored = in_s3(site.s3, BUCKET, "snapshot", "snapshots/v-1/tuesday", parents=["snapshots/v-1/monday"])
    site.copy("restore", restored, in_sr(SR, "volume", "r-1"))
    compare(at_tuesday, "raw", site.content("r-1"), "raw")


def goodbye(site: Site, watch: Watch) -> None:
    say("what is deleted is gone, and nothing else is left in the pool or on this host")
    site.submit("delete", {"command": "Delete", "data": in_sr(SR, "volume", "r-1")})
    site.cli("status")
    expect(site.agent.stop() == 0, "the daemon did not end in order")
    left = site.pool.control("left")
    names = sorted(record["name_label"] for record in left["vdis"].values() if record["type"] == "user")
    print(f"VDIs: {', '.join(names)}", flush=True)
    frozen = [f".storage-agent/frozen/v-1/{name}" for name in ("monday", "tuesday")]
    expect(names == [*frozen, "t-1", "v-1"], f"in the pool: {names}")
    expect(left["tasks"] == [] and left["dom0_vbds"] == [], f"left in the pool: {left}")
    largest = max(watch.seen, key=lambda name: watch.seen[name])
    print(f"of {len(watch.seen)} files that the daemon made the largest had {watch.seen[largest]} bytes: {largest}")
    expect(watch.seen[largest] < DATA // 4, f"{largest} looks like a copy of an image")
    log = site.agent.log.read_text()
    for secret in (site.pool.access.password, site.s3.secret_key):
        expect(secret not in log, "a secret is in the log")


@contextmanager
def s3_with(image: Path, directory: Path) -> Iterator[S3Server]:
    directory.mkdir()
    with run_seaweed(directory) as server:
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        client.upload_file(str(image), BUCKET, TEMPLATE)
        client.close()
        yield server


async def show(directory: Path) -> None:
    image = make_template(directory / "template.qcow2", data=DATA, size=GiB)
    print(f"template.qcow2: {image.stat().st_size / MiB:.0f} MiB, {GiB // MiB} MiB virtual")
    with s3_with(image, directory / "s3") as s3, xapi.process(directory / "pool") as pool:
        say("THE POOL IS A DOUBLE of two XenServer hosts, in a process of its own; everything else is real")
        for url in pool.access.urls:
            print(url)
        with agent_host(xen_options(pool.access, directory), started=False, **XEN_ENVIRONMENT) as agent:
            agent.environment["TMPDIR"] = str(agent.root)
            watch = Watch(agent.root, agent.pool)
            site = Site(agent, pool, s3, directory)
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(watch.forever())
                await asyncio.to_thread(agent.start)
                await asyncio.to_thread(site.cli, "status")
                await asyncio.to_thread(template_to_volume, site, image)
                await asyncio.to_thread(backups, site)
                await asyncio.to_thread(goodbye, site, watch)
                watching.cancel()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        say("a template, and a real S3 server (SeaweedFS) that has it")
        asyncio.run(show(Path(name)))
    print("\nthe pool was a double: what this shows of XAPI's behaviour is what its public sources say")
    print("demo-xen: ok")


if __name__ == "__main__":
    main()
