"""A host with a real daemon and a cache, and an object store that can be slow, or away, behind a proxy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stores.to import ImageFormat
from tests.agent_process import WAIT_S, AgentHost, agent_host
from tests.buckets import keys, made_bucket, uploads
from tests.doubles.disk_images import content_of
from tests.doubles.fault_proxy import FaultProxy, fault_proxy
from tests.images import qemu_io
from tests.servers import S3Server

OPTIONS = """
[transfer]
attempts = 1

[uploads]
first_retry_s = 0.1
last_retry_s = 0.3
first_probe_s = 0.1
last_probe_s = 0.3

[[cache.pools]]
name = "local"
directory = "{directory}"
limit = "200MiB"
"""


def until(true: Callable[[], bool]) -> None:
    late = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < late
        time.sleep(0.02)


@dataclass
class BackupSite:
    host: AgentHost
    line: FaultProxy
    client: Any
    bucket: str
    server: S3Server

    @property
    def store(self) -> dict[str, Any]:
        return {
            "storeType": "s3",
            "endPoint": f"http://127.0.0.1:{self.line.port}",
            "bucketName": self.bucket,
            "accessKey": self.server.access_key,
            "secretKey": self.server.secret_key,
        }

    def make_volume(self, path: str = "v", mib: int = 12) -> None:
        """With data in all of it but the last MiB."""
        self.do({"command": "CreateObject", "data": self.host.volume(path, size=mib << 20)})
        self.write(f"write -P 7 0 {mib - 1}M", path=path)

    def write(self, *actions: str, path: str = "v") -> None:
        qemu_io(self.host.pool / path, ImageFormat.QCOW2, *actions)

    def snapshot(self, name: str, path: str = "v") -> dict[str, Any]:
        data = {"type": "snapshot", "path": f"{path}/{name}", "dataStore": self.host.volume()["dataStore"]}
        self.do({"command": "CreateObject", "data": data})
        return data

    def backup(self, name: str, **more: Any) -> dict[str, Any]:
        return {"type": "snapshot", "path": f"snapshots/v/{name}", "dataStore": self.store, **more}

    def back_up(self, snapshot: dict[str, Any], name: str, durability: str = "stored", **more: Any) -> dict[str, Any]:
        """The command."""
        copy = {"command": "Copy", "source": snapshot, "destination": self.backup(name), "durability": durability}
        return {**copy, **more}

    def restore(self, name: str, path: str, parents: list[str] | None = None) -> str:
        """What a guest sees of the volume that is made of a backup."""
        source = self.backup(name, parents=parents or [])
        self.do({"command": "Copy", "source": source, "destination": self.host.volume(path)})
        return self.content(path)

    def content(self, path: str = "v") -> str:
        return content_of(self.host.pool / path, ImageFormat.QCOW2)

    # ------------------------------------------------------------------------------------------------ the agent

    def submit(self, command: dict[str, Any], *options: str) -> tuple[int, dict[str, Any]]:
        done = self.host("submit", self.host.write(command), "--json", *options)
        return done.code, done.json

    def do(self, command: dict[str, Any]) -> dict[str, Any]:
        code, answer = self.submit(command)
        assert code == 0, (answer, self.host.log.read_text()[-3000:])
        return answer

    def begin(self, command: dict[str, Any]) -> str:
        return str(self.submit(command, "--no-wait")[1]["id"])

    def uploads(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.host.call("GET", "/v1/uploads")[1]["uploads"]
        return found

    def events(self, wait_s: float = 0) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.host.call("GET", f"/v1/events?wait={wait_s}")[1]["events"]
        return found

    # ------------------------------------------------------------------------------------------------ the store

    def objects(self) -> set[str]:
        return keys(self.client, self.bucket)

    def unfinished(self) -> list[tuple[str, str]]:
        """Multipart uploads that the store knows of."""
        return uploads(self.client, self.bucket)


@contextmanager
def backup_site(
    server: S3Server,
    directory: Path,
    *,
    options: str = "",
    libvirt: str = "none",
    environment: dict[str, str] | None = None,
) -> Iterator[BackupSite]:
    """`directory`: of the cache. A bucket of its own, removed at the end. `environment`: more of the agent's."""
    text = OPTIONS.format(directory=directory) + options
    with (
        made_bucket(server) as (client, bucket),
        fault_proxy(server.port) as line,
        agent_host(text, started=True, libvirt=libvirt, **(environment or {})) as host,
    ):
        yield BackupSite(host, line, client, bucket, server)
