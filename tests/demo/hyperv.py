"""`make demo-hyperv`: the daemon keeps disks of a Hyper-V host on an SMB share; S3 is the only secondary storage.

THE HOST IS A DOUBLE: `tests/doubles/hyperv`, made after Microsoft's documents. No Windows is in this demo, and no PowerShell.
The share is a real Samba, whose folder the double has as its own; the daemon, its command line, the S3 server and qemu-img
are real.

A qcow2 template in S3 becomes a VHDX on the share, in one stream, and a linked clone is made of it. A machine writes to that;
a snapshot is made behind a checkpoint while it runs, backed up, restored and compared. The files that the daemon makes on
this host are looked for all the time. Everything lives in temporary directories, which are removed at the end.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.agent_process import AGENT, AgentHost, agent_host
from tests.demo.stage import compare, expect, make_template, say
from tests.doubles.hyperv import Host, running
from tests.doubles.hyperv.host import PASSWORD
from tests.doubles.hyperv.model import Drive, Machine
from tests.files_seen import Watch
from tests.guest import MiB
from tests.hyperv import POOL, disk
from tests.hyperv_agent import HYPERV_ENVIRONMENT, hyperv_options, in_s3, in_share
from tests.samba import SHARE, SambaServer, run_samba
from tests.servers import S3Server, run_seaweed

BUCKET, TEMPLATE = "secondary", "template/tmpl/2/201/debian.qcow2"
DATA, SIZE = 24 * MiB, 128 * MiB
FOLDER = "vms"


@dataclass
class Site:
    agent: AgentHost
    host: Host
    samba: SambaServer
    s3: S3Server
    directory: Path

    @property
    def folder(self) -> Path:
        return self.samba.root / FOLDER

    async def cli(self, *arguments: str | Path) -> None:
        """The command line where the reader sees it."""
        shown = [argument.name if isinstance(argument, Path) else argument for argument in arguments]
        print("$ storage-agent", *shown, flush=True)
        process = await asyncio.create_subprocess_exec(AGENT, *arguments, env=self.agent.env())
        code = await process.wait()
        expect(code == 0, f"storage-agent {arguments[0]} ended with {code}")

    async def submit(self, name: str, command: dict[str, Any]) -> None:
        await self.cli("submit", self.agent.write(command, f"{name}.json"))

    async def copy(self, name: str, source: dict[str, Any], destination: dict[str, Any]) -> None:
        await self.submit(name, {"command": "Copy", "source": source, "destination": destination})

    def here(self, kind: str, path: str, **fields: Any) -> dict[str, Any]:
        return in_share(self.samba, FOLDER, kind, path, **fields)

    def in_s3(self, kind: str, path: str, **fields: Any) -> dict[str, Any]:
        return in_s3(self.s3, BUCKET, kind, path, **fields)

    async def seen(self, machine: Machine) -> Path:
        """What the guest reads from its disk now, saved behind the daemon's back."""
        path = self.directory / "guest.raw"
        path.write_bytes(await self.host.model.vhds.content(machine.disks[0].path or ""))
        return path


async def template_to_clone(site: Site, image: Path) -> Machine:
    template = site.in_s3("template", TEMPLATE, format="QCOW2")
    say("what would be done, and why (runs nothing)")
    asked = {"command": "Copy", "source": template, "destination": site.here("template", "t-1")}
    await site.cli("explain", site.agent.write(asked, "template.json"))
    say("one command: the qcow2 in S3 becomes a VHDX on the share, which the host tests")
    await site.copy("template", template, site.here("template", "t-1"))
    file = site.folder / "t-1.vhdx"
    told = file.stat()
    print(f"t-1.vhdx: {told.st_size / MiB:.1f} MiB for {SIZE // MiB} MiB virtual, dense", flush=True)
    expect(DATA <= told.st_size < DATA + 8 * MiB, "the VHDX has something else than the data")
    expect(told.st_blocks * 512 >= told.st_size, "the VHDX has holes in its file, which Hyper-V does not open")
    compare(image, "qcow2", file, "vhdx")

    say("a volume of that template: a differencing VHDX of a few MiB; a machine of the host has it, and runs")
    await site.copy("clone", site.here("template", "t-1"), site.here("volume", "v-1"))
    expect((site.folder / "v-1.vhdx").stat().st_size < 5 * MiB, "a linked clone should be small")
    machine = site.host.model.add_machine("vm-1", state="Running")
    machine.disks = [Drive("SCSI", 0, 0, disk("v-1.vhdx"))]
    return machine


async def backup_and_back(site: Site, machine: Machine) -> None:
    say("the guest writes; a snapshot while it runs, behind a checkpoint that is gone afterwards")
    await site.host.model.vhds.write(disk("v-1.vhdx"), 100 * MiB, random.Random(1).randbytes(2 * MiB))
    before = await site.seen(machine)
    await site.submit("monday", {"command": "CreateObject", "data": site.here("snapshot", "v-1/monday")})
    expect(machine.checkpoints == [] and not machine.merging, "a checkpoint is left")
    expect(machine.disks[0].path == disk("v-1.vhdx"), "the machine goes on in another file")

    say("the guest goes on; the snapshot is backed up into S3, whole, and restored as another volume")
    await site.host.model.vhds.write(disk("v-1.vhdx"), 0, bytes(4 * MiB))
    await site.copy("backup", site.here("snapshot", "v-1/monday"), site.in_s3("snapshot", "snapshots/v-1/monday"))
    await site.copy("restore", site.in_s3("snapshot", "snapshots/v-1/monday"), site.here("volume", "r-1"))
    compare(before, "raw", site.folder / "r-1.vhdx", "vhdx")


async def goodbye(site: Site, watch: Watch) -> None:
    say("what is deleted is gone, and nothing else is left on the share, at the host, or on this one")
    await site.submit("delete", {"command": "Delete", "data": site.here("volume", "r-1")})
    await site.cli("status")
    expect(await asyncio.to_thread(site.agent.stop) == 0, "the daemon did not end in order")
    files = sorted(str(path.relative_to(site.folder)) for path in site.folder.rglob("*") if path.is_file())
    images = [name for name in files if name.endswith("vhdx")]
    print(f"on the share: {', '.join(images)}", flush=True)
    expect(images == [".storage-agent/frozen/v-1/monday.vhdx", "t-1.vhdx", "v-1.vhdx"], f"on the share: {files}")
    expect([name for name in files if name.endswith(".partial")] == [], f"on the share: {files}")
    expect(site.host.shells.open == {} and site.host.model.records == {}, "the host keeps something for us")
    largest = max(watch.seen, key=lambda name: watch.seen[name])
    print(f"of {len(watch.seen)} files that the daemon made the largest had {watch.seen[largest]} bytes: {largest}")
    expect(watch.seen[largest] < DATA // 4, f"{largest} looks like a copy of an image")
    log = site.agent.log.read_text()
    for secret in (PASSWORD, site.samba.password, site.s3.secret_key):
        expect(secret not in log, "a secret is in the log")


async def show(directory: Path, s3: S3Server, samba: SambaServer) -> None:
    image = make_template(directory / "template.qcow2", data=DATA, size=SIZE)
    client = s3.client()
    client.create_bucket(Bucket=BUCKET)
    client.upload_file(str(image), BUCKET, TEMPLATE)
    client.close()
    (samba.root / FOLDER).mkdir()
    async with running(directory / "host", roots={POOL: samba.root / FOLDER}) as host:
        say("THE HOST IS A DOUBLE; everything else is real")
        print(f"host {host.endpoint}: {POOL} is \\\\127.0.0.1\\{SHARE}\\{FOLDER}", flush=True)
        options = hyperv_options(host, samba, FOLDER, directory)
        with agent_host(options, started=False, **HYPERV_ENVIRONMENT) as agent:
            agent.environment["TMPDIR"] = str(agent.root)
            watch = Watch(agent.root, agent.pool)
            site = Site(agent, host, samba, s3, directory)
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(watch.forever())
                await asyncio.to_thread(agent.start)
                machine = await template_to_clone(site, image)
                await backup_and_back(site, machine)
                await goodbye(site, watch)
                watching.cancel()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        directory = Path(name)
        for folder in ("s3", "samba", "host"):
            (directory / folder).mkdir()
        say("a template, a real S3 server (SeaweedFS) that has it, and a real Samba")
        with run_seaweed(directory / "s3") as s3, run_samba(directory / "samba") as samba:
            asyncio.run(show(directory, s3, samba))
    print("\nthe host was a double: what this shows of Hyper-V's behaviour is what Microsoft's documents say")
    print("demo-hyperv: ok")


if __name__ == "__main__":
    main()
