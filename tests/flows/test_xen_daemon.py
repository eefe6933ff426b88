"""The daemon drives a pool of XenServer hosts over its HTTP API, with S3 as the only secondary storage.

The pool is a double in a process of its own, which outlives a daemon that is killed. S3 is real.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.cli_client import Client
from stores.contract import MiB
from tests.agent_process import WAIT_S, AgentHost, agent_host
from tests.buckets import keys
from tests.doubles import xapi
from tests.guest import run
from tests.secret_scan import spellings
from tests.servers import S3Server
from tests.xen_agent import XEN_ENVIRONMENT, Body, in_s3, in_sr, write_password, xen_options

PASSWORD = "correct horse battery staple"
SIZE = 64 * MiB
DATA = random.Random(4).randbytes(7 * MiB)


@dataclass
class Site:
    host: AgentHost
    pool: xapi.Remote
    s3: S3Server
    bucket: str
    folder: Path
    answers: list[Body] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set)

    def ask(self, command: str, **fields: Any) -> tuple[Body, list[str]]:
        """The final answer, and the phases that it went through."""
        client = Client(self.host.socket)
        body = json.dumps({"command": command, **fields}).encode()
        answer = client.call("POST", "/v1/commands", body=body)
        phases: list[str] = []
        for name, event in client.events(str(answer["id"])):
            if name == "end":
                answer = event
            elif (progress := event.get("progress")) and progress["phase"] not in phases:
                phases.append(progress["phase"])
        self.answers.append(answer)
        self.secrets |= set(self.pool.control("session_refs"))
        return answer, phases

    def done(self, command: str, **fields: Any) -> Body:
        answer, _ = self.ask(command, **fields)
        assert answer["state"] == "succeeded", answer
        return answer

    def copy(self, source: Body, destination: Body, **fields: Any) -> Body:
        return self.done("Copy", source=source, destination=destination, **fields)

    def template(self) -> Body:
        return in_s3(self.s3, self.bucket, "template", "t.qcow2", format="QCOW2")

    def backup(self, name: str, **fields: Any) -> Body:
        return in_s3(self.s3, self.bucket, "snapshot", f"snapshots/v/{name}", **fields)

    # --------------------------------------------------------------------------------------------------- the pool

    def left(self) -> Body:
        found: Body = self.pool.control("left")
        return found

    def names(self) -> list[str]:
        """Of all VDIs."""
        return sorted(str(record["name_label"]) for record in self.left()["vdis"].values())

    def digest(self, name: str) -> str:
        return str(self.pool.control("digest", vdi=self._vdi(name)))

    def write(self, name: str, offset: int, data: bytes) -> None:
        """As a guest."""
        (self.folder / "written").write_bytes(data)
        self.pool.control("write", vdi=self._vdi(name), offset=offset, content=str(self.folder / "written"))

    def _vdi(self, name: str) -> str:
        (found,) = (uuid for uuid, record in self.left()["vdis"].items() if record["name_label"] == name)
        return str(found)

    def nothing_else_is_left(self, *names: str) -> None:
        left = self.left()
        assert self.names() == sorted(names)
        assert (left["tasks"], left["dom0_vbds"]) == ([], [])
        configs = [record["other_config"] for record in left["vdis"].values()]
        assert [key for config in configs for key in config if key.startswith("storage-agent:copying")] == []

    # -------------------------------------------------------------------------------------------------- the agent

    def began(self) -> None:
        self.host.start()

    def leaks(self) -> list[str]:
        """Where a secret is that is none of the operator's own files."""
        status = self.host("status", "--json").out + self.host("commands", "ls", "--json").out
        _, metrics = self.host.call("GET", "/metrics")
        seen = {"answers": json.dumps(self.answers), "status": status, "metrics": str(metrics)}
        for path in self.host.root.rglob("*"):
            if path.is_file():
                seen[str(path.relative_to(self.host.root))] = path.read_bytes().decode("latin-1")
        return sorted(
            where
            for where, text in seen.items()
            for secret in self.secrets
            for form in spellings(secret)
            if form in text
        )


@pytest.fixture
def site(seaweed: S3Server, bucket: str) -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="xen-"))
    try:
        make_template(folder / "t.qcow2")
        client = seaweed.client()
        client.upload_file(str(folder / "t.qcow2"), bucket, "t.qcow2")
        client.close()
        with xapi.process(folder / "pool", xapi.Settings(password=PASSWORD)) as pool:
            options = xen_options(pool.access, folder)
            with agent_host(options, started=False, **XEN_ENVIRONMENT) as host:
                yield Site(host, pool, seaweed, bucket, folder, secrets={PASSWORD, seaweed.secret_key})
    finally:
        shutil.rmtree(folder)


def make_template(path: Path) -> None:
    raw = path.with_suffix(".raw")
    with raw.open("wb") as file:
        file.write(DATA)
        file.truncate(SIZE)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)


def changed(*writes: tuple[int, bytes]) -> str:
    """Digest of the template's disk with these bytes written over it."""
    disk = bytearray(SIZE)
    disk[: len(DATA)] = DATA
    for offset, data in writes:
        disk[offset : offset + len(data)] = data
    return hashlib.sha256(disk).hexdigest()


def until(true: Callable[[], bool]) -> None:
    late = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < late
        time.sleep(0.05)


def test_a_template_a_volume_its_backups_and_the_end_of_all(site: Site) -> None:
    site.began()
    # Whoever watches sees where a command is now and then, so it stays there for a while.
    site.pool.control("arm", where="import", step="body", action="delay", at_byte=MiB, seconds=2)
    answer, phases = site.ask("Copy", source=site.template(), destination=in_sr("shared", "template", "t"))
    assert answer["state"] == "succeeded", answer
    assert answer["newData"]["format"] == "VHD"
    assert "transfer" in phases
    assert site.digest("t") == changed()
    assert sum(each["body"] for each in site.pool.control("transfers")) < len(DATA) + 2 * MiB  # no zeroes

    sent = len(site.pool.control("transfers"))
    site.copy(in_sr("shared", "template", "t"), in_sr("shared", "volume", "v"))
    assert len(site.pool.control("transfers")) == sent
    first = (20 * MiB, b"\1" * MiB)
    site.write("v", *first)
    site.done("CreateObject", data=in_sr("shared", "snapshot", "v/one"))
    site.copy(in_sr("shared", "snapshot", "v/one"), site.backup("one"))
    second = (2 * MiB, b"\2" * MiB)
    site.write("v", *second)
    site.done("CreateObject", data=in_sr("shared", "snapshot", "v/two"))
    told = site.copy(in_sr("shared", "snapshot", "v/two"), site.backup("two", parentSnapshotPath="snapshots/v/one"))
    assert told["newData"]["physicalSize"] <= 3 * MiB  # one block of 2 MiB, and what a VHD has around it
    site.write("v", 0, b"\3" * SIZE)

    restored = site.backup("two", parents=["snapshots/v/one"])
    site.copy(restored, in_sr("shared", "volume", "r"))
    assert site.digest("r") == changed(first, second)
    site.done("RevertSnapshot", data=in_sr("shared", "snapshot", "v/one"))
    assert site.digest("v") == changed(first)

    for kind, path in (
        ("snapshot", "v/one"),
        ("snapshot", "v/two"),
        ("volume", "v"),
        ("volume", "r"),
        ("template", "t"),
    ):
        site.done("Delete", data=in_sr("shared", kind, path))
    site.done("Delete", data=site.backup("two"))
    site.done("Delete", data=site.backup("one"))
    site.nothing_else_is_left()
    client = site.s3.client()
    assert keys(client, site.bucket) == {"t.qcow2"}
    client.close()
    assert site.host.stop() == 0
    assert site.left()["sessions"] == []


def test_an_answer_is_kept_over_a_kill_and_what_was_cut_off_is_removed(site: Site) -> None:
    site.began()
    site.copy(site.template(), in_sr("shared", "template", "t"), id="first")
    site.pool.control("arm", where="import", step="body", action="hang", at_byte=MiB, seconds=600)
    command = {"source": site.template(), "destination": in_sr("shared", "template", "u")}
    body = json.dumps({"id": "second", "command": "Copy", **command}).encode()
    Client(site.host.socket).call("POST", "/v1/commands", body=body)
    until(lambda: len(site.pool.control("transfers")) == 2 and site.left()["dom0_vbds"] != [])
    site.host.stop(signal.SIGKILL)
    assert len(site.names()) == 2

    site.began()
    answer, _ = site.ask("Copy", id="second", **command)
    assert (answer["state"], answer["error"]["kind"]) == ("interrupted", "Interrupted")
    until(lambda: site.names() == ["t"] and site.left()["tasks"] == [] and site.left()["dom0_vbds"] == [])
    site.nothing_else_is_left("t")
    sent = len(site.pool.control("transfers"))
    again = site.copy(site.template(), in_sr("shared", "template", "t"), id="first")
    assert again == site.answers[0]
    assert len(site.pool.control("transfers")) == sent
    site.copy(id="third", **command)
    assert site.digest("u") == changed()
    site.nothing_else_is_left("t", "u")


def test_a_changed_password_counts_without_a_restart_and_no_secret_gets_out(site: Site) -> None:
    site.began()
    site.done("CreateObject", data=in_sr("shared", "volume", "v", size=4 * MiB))
    write_password(site.folder / "xen-password", "planted-wrong-9f1c+/Zq=2")
    site.secrets.add("planted-wrong-9f1c+/Zq=2")
    site.pool.control("drop_sessions")
    refused, _ = site.ask("CreateObject", data=in_sr("shared", "volume", "w", size=4 * MiB))
    assert (refused["state"], refused["error"]["kind"]) == ("failed", "AccessDenied")
    assert "not logged in" in site.host("status").out

    write_password(site.folder / "xen-password", PASSWORD)
    site.done("CreateObject", data=in_sr("shared", "volume", "w", size=4 * MiB))
    assert f"logged in at {site.pool.access.address(0)}" in site.host("status").out
    site.pool.control("arm", where="import", step="body", action="drop", at_byte=MiB, times=None)
    failed, _ = site.ask("Copy", source=site.template(), destination=in_sr("shared", "template", "t"))
    assert failed["state"] == "failed"
    nowhere, _ = site.ask("CreateObject", data=in_sr("nowhere", "volume", "x", size=4 * MiB))
    assert (nowhere["error"]["kind"], "shared" in nowhere["error"]["message"]) == ("NotFound", True)
    site.nothing_else_is_left("v", "w")
    assert any(secret.startswith("OpaqueRef:") for secret in site.secrets)
    assert site.leaks() == []


def test_hosts_that_are_away_keep_no_agent_from_starting(site: Site) -> None:
    for host in (0, 1):
        site.pool.control("stop_host", host=host)
    site.began()
    until(lambda: "leftovers not looked for" in site.host.log.read_text())
    status = site.host("status", "--json").json
    assert status["ready"] is True
    (pool,) = status["host_pools"]
    assert (pool["name"], pool["coordinator"]) == ("double", None)
    assert pool["problem"]
    refused, _ = site.ask("CreateObject", data=in_sr("shared", "volume", "v", size=4 * MiB))
    assert (refused["error"]["kind"], refused["error"]["retryable"]) == ("Unavailable", "yes")
    for host in (0, 1):
        site.pool.control("start_host", host=host)
    site.done("CreateObject", data=in_sr("shared", "volume", "v", size=4 * MiB))
    assert site.host.stop() == 0


def test_an_explanation_contacts_nobody_and_is_about_xen(site: Site) -> None:
    """Not even the daemon runs."""
    asked = {"command": "Copy", "source": site.template(), "destination": in_sr("shared", "template", "t")}
    told = site.host("explain", site.host.write(asked), "--json").json
    assert (told["hypervisor"], told["how"], told["refusal"]) == ("XenServer", "converted", None)
    assert (told["source"]["chosen"], told["source"]["via"]) == ("RangeReader", "native")
    assert (told["target"]["chosen"], told["target"]["via"]) == ("ManagedDisk", "native")
    assert site.pool.control("calls") == {}
