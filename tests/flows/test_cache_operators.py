"""The cache as operators meet it: configured in the daemon, attached from, looked at and looked after by the command line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stores.contract import MiB
from tests.agent_process import AgentHost, agent_host
from tests.doubles.disk_images import DiskImages, file_hash
from tests.servers import NginxServer

OPTIONS = """
[urls]
allow_http = true
allow_networks = ["127.0.0.0/8"]
ports = []

[cache]
wait_s = 0.5

[[cache.pools]]
name = "local"
directory = "{root}/cache"
limit = "18MiB"
high = 1.0
low = 1.0
"""


@dataclass
class Host:
    """A host with a cache, and a web server."""

    agent: AgentHost
    nginx: NginxServer
    iso: Path

    @property
    def root(self) -> Path:
        return self.agent.root

    def cli(self, *arguments: str, expect: int = 0, stdin: str = "") -> Any:
        done = self.agent(*arguments, "--json", stdin=stdin)
        assert done.code == expect, (done.out, done.err)
        return done.json

    def text(self, *arguments: str) -> str:
        done = self.agent(*arguments)
        assert done.code == 0, (done.out, done.err)
        return done.out

    def data(self, name: str, *, filler: int = 0) -> dict[str, Any]:
        """An ISO on the web server, `filler` bytes longer than it need be."""
        ref = f"{self.root.name}/{name}"
        target = self.nginx.root / ref
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(self.iso.read_bytes() + bytes(filler))
        store = {"storeType": "image", "uri": self.nginx.url("")}
        return {"type": "template", "path": ref, "format": "ISO", "imageDataStore": store}

    def submit(self, command: str, name: str, vm: str, *, expect: int = 0) -> Any:
        body = {"command": command, "vmName": vm, "disk": {"type": "ISO", "diskSeq": 3, "data": self.data(name)}}
        return self.cli("submit", "-", stdin=json.dumps(body), expect=expect)

    @contextmanager
    def daemon(self) -> Iterator[None]:
        self.agent.start()
        yield
        assert self.agent.stop() == 0, self.agent.log.read_text()


@pytest.fixture
def host(nginx: NginxServer, disk_images: DiskImages) -> Iterator[Host]:
    with agent_host(started=False) as agent:
        with agent.config.open("a") as config:
            config.write(OPTIONS.format(root=agent.root))
        try:
            yield Host(agent, nginx, disk_images["iso"].path)
        finally:
            shutil.rmtree(nginx.root / agent.root.name, ignore_errors=True)


def test_from_configuration_to_eviction(host: Host) -> None:
    host.data("big.iso", filler=2 * MiB)
    attach = {"command": "Attach", "vmName": "vm", "disk": {"type": "ISO", "data": host.data("a.iso")}}
    told = host.cli("explain", "-", stdin=json.dumps(attach))  # there is no daemon yet
    assert (told["source"]["chosen"], told["source"]["via"]) == ("LocalPath", "cache")
    assert not (host.root / "cache").exists()

    with host.daemon():
        (pool,) = host.cli("cache", "stats")["pools"]
        assert (pool["name"], pool["limit"], pool["used"], pool["entries"]) == ("local", 2 * MiB, 0, 0)

        attached = host.submit("Attach", "a.iso", "vm")
        path = Path(attached["disk"]["path"])
        assert (attached["disk"]["type"], attached["disk"]["diskSeq"]) == ("ISO", 3)
        assert file_hash(path) == file_hash(host.iso)
        (entry,) = host.cli("cache", "ls")["entries"]
        assert (entry["ref"], entry["state"], entry["hold"]) == (host.data("a.iso")["path"], "ready", "pinned")
        key = entry["key"]
        (shown,) = host.cli("cache", "show", key)["entries"]
        assert [pin["lasting"] for pin in shown["pins"]] == [True]
        assert shown["pins"][0]["reason"].startswith(f"attached:vm/{entry['ref']}")

        (copy,) = host.cli("cache", "explain", entry["ref"])["copies"]
        assert copy["stays"][0].startswith(f"attached:vm/{entry['ref']}")
        assert host.cli("cache", "explain", key[:8])["copies"][0]["entry"]["key"] == key
        assert host.cli("cache", "explain", "nothing-of-that-name")["copies"] == []
        refused = host.cli("cache", "evict", key, expect=3)["error"]
        assert (refused["kind"], refused["details"]["hold"]) == ("EntryHeld", "pinned")

    with host.daemon():  # what is attached has survived the restart
        assert path.exists()
        # What does not fit beside it, or at all, is refused with the reason.
        refused = host.submit("Attach", "big.iso", "vm", expect=1)["error"]
        assert (refused["kind"], refused["retryable"]) == ("LargerThanCache", "no")
        host.submit("Attach", "b.iso", "vm")
        refused = host.submit("Attach", "c.iso", "vm", expect=3)["error"]
        assert refused["kind"] == "CacheExhausted"
        assert refused["details"]["pools"]["local"]["pinned"] > 1 * MiB
        assert "attached:vm/" in refused["message"]

        for name in ("a.iso", "b.iso"):
            assert host.submit("Dettach", name, "vm")["state"] == "succeeded"
        assert host.cli("cache", "pin", key, "--reason", "exam week")["entries"][0]["hold"] == "pinned"
        assert host.cli("cache", "pin", key)["entries"][0]["pins"][0]["reason"] == "operator: exam week"
        assert host.cli("cache", "evict", key, expect=3)["error"]["details"]["pins"] == ["operator: exam week"]
        assert host.cli("cache", "unpin", key)["entries"][0]["hold"] is None
        assert host.cli("cache", "evict", key)["bytes"] > 0
        assert not path.exists()
        assert host.cli("cache", "show", key, expect=1)["error"]["kind"] == "NotFound"

        _, metrics = host.agent.call("GET", "/metrics")
        assert 'storage_agent_cache_requests_total{outcome="miss"}' in metrics
        assert 'storage_agent_cache_pool_sick{pool="local"} 0.0' in metrics
    assert os.listdir(host.root / "cache/fill") == []


def test_prefetch_scrub_and_reconcile(host: Host) -> None:
    with host.daemon():
        done = host.cli("cache", "prefetch", "-", stdin=json.dumps(host.data("a.iso")))
        assert (done["state"], done["data"]["path"]) == ("succeeded", host.data("a.iso")["path"])
        (entry,) = host.cli("cache", "ls", "--pool", "local")["entries"]
        assert entry["hold"] is None
        assert "not used again since" in host.text("cache", "explain", entry["key"])
        assert "nothing holds it" in host.text("cache", "explain", entry["key"])
        assert entry["ref"] in host.text("cache", "ls")
        assert "entries 1" in host.text("cache", "stats")
        assert entry["key"] in host.text("cache", "show", entry["key"])

        scrubbed = host.cli("cache", "scrub")["scrubbed"]["local"]
        assert (scrubbed["entries"], scrubbed["bytes"], scrubbed["quarantined"]) == (1, entry["size"], [])
        assert host.cli("cache", "scrub", "--older-than", "30")["scrubbed"]["local"]["entries"] == 0

        (file,) = (host.root / "cache/objects").rglob(f"{entry['key']}*[!n]")
        before = file.stat()
        with file.open("r+b") as opened:  # a bit rots: same size, same time
            opened.seek(-1, os.SEEK_END)
            opened.write(b"\xff")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert host.cli("cache", "scrub", "--pool", "local")["scrubbed"]["local"]["quarantined"] == [entry["ref"]]

        (host.root / "cache/objects/stray").write_bytes(b"not ours")
        (host.root / "cache/stray").write_bytes(b"not ours")
        strays = host.cli("cache", "reconcile")["reconciled"]["local"]["strays"]
        assert "stray" in strays
        assert (host.root / "cache/stray").exists()
        assert host.cli("cache", "stats")["pools"][0]["strayFiles"] == len(strays)
        assert host.cli("cache", "reconcile", "--pool", "nope", expect=1)["error"]["kind"] == "NotFound"
        assert host.cli("cache", "ls", "--pool", "nope", expect=1)["error"]["kind"] == "NotFound"
        assert host.cli("cache", "prefetch", "-", stdin="{", expect=2)["error"]["kind"] == "Usage"


def test_a_pool_that_cannot_be_opened_does_not_keep_the_agent_from_working(host: Host) -> None:
    (host.root / "cache").write_text("in the way")
    with host.daemon():
        (pool,) = host.cli("cache", "stats")["pools"]
        assert "ailment" in pool
        assert "SICK" in host.text("cache", "stats")
        assert host.cli("submit", "-", stdin='{"command": "Ping"}')["state"] == "succeeded"
        refused = host.submit("Attach", "a.iso", "vm", expect=3)["error"]
        assert refused["kind"] == "CacheUnavailable"
