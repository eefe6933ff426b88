"""The daemon keeps disks of a Hyper-V host on an SMB share, over its HTTP API, with S3 as the only secondary storage.

The host is a double in the test's own process, which outlives a daemon that is killed. Samba and S3 are real.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.cli_client import Client
from stores.contract import MiB
from tests.agent_process import WAIT_S, AgentHost, agent_host
from tests.buckets import keys
from tests.doubles.disk_images import qemu_img
from tests.doubles.hyperv import Host, WireFault, running
from tests.doubles.hyperv.host import PASSWORD
from tests.doubles.hyperv.model import Machine
from tests.hyperv import POOL, disk
from tests.hyperv_agent import HYPERV_ENVIRONMENT, Body, hyperv_options, in_s3, in_share
from tests.samba import SambaServer
from tests.secret_scan import spellings
from tests.servers import S3Server

SIZE = 32 * MiB
DATA = random.Random(4).randbytes(5 * MiB)


@dataclass
class Site:
    agent: AgentHost
    host: Host
    samba: SambaServer
    s3: S3Server
    bucket: str
    folder: Path
    """Of the share: the host's pool."""
    directory: Path
    answers: list[Body] = field(default_factory=list)

    async def began(self) -> None:
        await asyncio.to_thread(self.agent.start)

    async def ask(self, command: str, **fields: Any) -> Body:
        """The final answer."""
        return await asyncio.to_thread(self._ask, {"command": command, **fields})

    def _ask(self, command: Body) -> Body:
        client = Client(self.agent.socket)
        answer = client.call("POST", "/v1/commands", body=json.dumps(command).encode())
        for name, event in client.events(str(answer["id"])):
            if name == "end":
                answer = event
        self.answers.append(answer)
        return answer

    async def done(self, command: str, **fields: Any) -> Body:
        answer = await self.ask(command, **fields)
        assert answer["state"] == "succeeded", answer
        return answer

    async def copy(self, source: Body, destination: Body, **fields: Any) -> Body:
        return await self.done("Copy", source=source, destination=destination, **fields)

    def here(self, kind: str, path: str, **fields: Any) -> Body:
        return in_share(self.samba, self.folder.name, kind, path, **fields)

    def template(self) -> Body:
        return in_s3(self.s3, self.bucket, "template", "t.qcow2", format="QCOW2")

    def backup(self, name: str) -> Body:
        return in_s3(self.s3, self.bucket, "snapshot", f"snapshots/v/{name}")

    def files(self) -> list[str]:
        """All that is in the pool."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    async def digest(self, name: str) -> str:
        """Of what a guest reads."""
        return hashlib.sha256(await self.host.model.vhds.content(disk(f"{name}.vhdx"))).hexdigest()

    def machine(self) -> Machine:
        return self.host.model.machines["vm"]


@pytest.fixture
async def site(seaweed: S3Server, bucket: str, samba: SambaServer) -> AsyncIterator[Site]:
    directory = Path(tempfile.mkdtemp(prefix="hv-"))
    pool = samba.root / f"d-{uuid.uuid4().hex[:8]}"
    pool.mkdir()
    try:
        (directory / "raw").write_bytes(DATA + bytes(SIZE - len(DATA)))
        qemu_img("convert", "-f", "raw", "-O", "qcow2", str(directory / "raw"), str(directory / "t.qcow2"))
        client = seaweed.client()
        client.upload_file(str(directory / "t.qcow2"), bucket, "t.qcow2")
        client.close()
        (directory / "host").mkdir()
        async with running(directory / "host", roots={POOL: pool}) as host:
            host.model.add_machine("vm", state="Running")
            options = hyperv_options(host, samba, pool.name, directory)
            with agent_host(options, started=False, **HYPERV_ENVIRONMENT) as agent:
                yield Site(agent, host, samba, seaweed, bucket, pool, directory)
    finally:
        shutil.rmtree(directory)


def changed(*writes: tuple[int, bytes]) -> str:
    """Digest of the template's disk with these bytes written over it."""
    content = bytearray(SIZE)
    content[: len(DATA)] = DATA
    for offset, data in writes:
        content[offset : offset + len(data)] = data
    return hashlib.sha256(content).hexdigest()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not true():
            await asyncio.sleep(0.05)


async def test_a_template_a_machines_volume_its_backup_and_the_end_of_all(site: Site) -> None:
    await site.began()
    told = await site.copy(site.template(), site.here("template", "t"))
    assert told["newData"]["format"] == "VHDX"
    assert await site.digest("t") == changed()
    assert (site.folder / "t.vhdx").stat().st_size < len(DATA) + 8 * MiB  # no zeroes

    await site.copy(site.here("template", "t"), site.here("volume", "v"))
    volume = {"disk": {"type": "DATADISK", "data": site.here("volume", "v"), "diskSeq": 70}, "vmName": "vm"}
    await site.done("Attach", **volume)
    assert [(drive.path, drive.number, drive.location) for drive in site.machine().disks] == [(disk("v.vhdx"), 1, 6)]
    write = (20 * MiB, b"\1" * MiB)
    await site.host.model.vhds.write(disk("v.vhdx"), *write)
    await site.done("CreateObject", data=site.here("snapshot", "v/one"))
    assert (site.machine().checkpoints, site.machine().merging) == ([], 0)
    await site.copy(site.here("snapshot", "v/one"), site.backup("one"))
    await site.host.model.vhds.write(disk("v.vhdx"), 0, b"\2" * 2 * MiB)

    await site.copy(site.backup("one"), site.here("volume", "r"))
    assert await site.digest("r") == changed(write)
    busy = await site.ask("RevertSnapshot", data=site.here("snapshot", "v/one"))
    assert (busy["state"], busy["error"]["kind"]) == ("failed", "ImageLocked")
    await site.done("Dettach", **volume)
    assert site.machine().disks == []
    await site.done("RevertSnapshot", data=site.here("snapshot", "v/one"))
    assert await site.digest("v") == changed(write)

    for kind, path in (("snapshot", "v/one"), ("volume", "v"), ("volume", "r"), ("template", "t")):
        await site.done("Delete", data=site.here(kind, path))
    await site.done("Delete", data=site.backup("one"))
    assert site.files() == []
    client = site.s3.client()
    assert keys(client, site.bucket) == {"t.qcow2"}
    client.close()
    assert await asyncio.to_thread(site.agent.stop) == 0
    assert (site.host.shells.open, site.host.model.records) == ({}, {})


async def test_answers_are_kept_over_a_kill_and_what_was_finished_counts(site: Site) -> None:
    """Killed while the host tests a disk that has its name already: that is one."""
    await site.began()
    await site.copy(site.template(), site.here("template", "t"), id="first")
    site.host.faults.wire[:] = [WireFault("Command", action="hang", times=None)]
    command = {"source": site.template(), "destination": site.here("template", "u")}
    body = json.dumps({"id": "second", "command": "Copy", **command}).encode()
    await asyncio.to_thread(Client(site.agent.socket).call, "POST", "/v1/commands", body=body)
    await until(lambda: site.host.faults.wire[0].hits > 0)
    assert (site.folder / "u.vhdx").exists()
    await asyncio.to_thread(site.agent.stop, signal.SIGKILL)
    site.host.faults.wire.clear()

    await site.began()
    await site.copy(id="second", **command)
    assert await site.digest("u") == changed()
    kept = site.files()
    again = await site.copy(site.template(), site.here("template", "t"), id="first")
    assert again == site.answers[0]
    assert site.files() == kept
    for name in ("t", "u"):
        await site.done("Delete", data=site.here("template", name))
    assert site.files() == []


async def test_a_host_that_is_away_keeps_no_agent_from_starting_and_no_secret_gets_out(site: Site) -> None:
    await site.began()
    await site.copy(site.template(), site.here("volume", "v"))
    assert await asyncio.to_thread(site.agent.stop) == 0
    site.host.faults.wire[:] = [WireFault("connect", times=None)]
    await site.began()
    volume = {"disk": {"type": "DATADISK", "data": site.here("volume", "v")}, "vmName": "vm"}
    failed = await site.ask("Attach", deadline_s=3, **volume)
    assert (failed["state"], failed["error"]["retryable"]) == ("failed", "yes")
    assert site.machine().disks == []
    site.host.faults.wire.clear()
    await site.done("Attach", **volume)
    assert [drive.path for drive in site.machine().disks] == [disk("v.vhdx")]
    secrets = (PASSWORD, site.samba.password, site.s3.secret_key)
    seen = {"answers": json.dumps(site.answers), "log": site.agent.log.read_text()}
    for path in (site.agent.root / "state").rglob("*"):
        if path.is_file():
            seen[path.name] = path.read_bytes().decode("latin-1")
    spelled = [form for secret in secrets for form in spellings(secret)]
    assert [where for where, text in seen.items() if any(form in text for form in spelled)] == []


async def test_an_explanation_contacts_nobody_and_is_about_hyperv(site: Site) -> None:
    """Not even the daemon runs."""
    asked = {"command": "Copy", "source": site.template(), "destination": site.here("template", "t")}
    told = (await asyncio.to_thread(site.agent, "explain", site.agent.write(asked), "--json")).json
    assert (told["hypervisor"], told["how"], told["refusal"]) == ("Hyperv", "converted", None)
    assert (told["source"]["chosen"], told["source"]["via"]) == ("RangeReader", "native")
    assert (told["target"]["chosen"], told["target"]["via"]) == ("ManagedDisk", "native")
    assert site.host.faults.messages == []
