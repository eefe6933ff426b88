"""`make demo-cloudstack`: a management server commands a real daemon in CloudStack's own protocol, over two links, and S3 is
the only secondary storage.

The server registers a template, deploys a volume from it, takes a snapshot, backs it up and restores it; volumes are compared.
First as a server that gives S3 to a hypervisor host itself, then as one that insists on copies by way of an `ImageCache`
store, which there is none behind. No cache and no mount is configured, and what comes into being outside of the pool and the
bucket is looked for all the time. Everything lives in temporary directories, which are removed at the end.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.agent_process import AgentHost, agent_host
from tests.buckets import keys
from tests.demo.stage import compare, expect, make_template, say
from tests.doubles.fault_proxy import FaultProxy
from tests.doubles.management_server.attached import API, AttachedAgent
from tests.doubles.management_server.authority import Authority
from tests.doubles.management_server.packets import Body
from tests.doubles.management_server.server import ManagementServer
from tests.files_seen import Watch
from tests.guest import GiB, MiB, run
from tests.servers import NginxServer, S3Server, make_certificates, run_nginx, run_seaweed

COMMAND, TO = "org.apache.cloudstack.storage.command", "org.apache.cloudstack.storage.to"
BUCKET, TEMPLATE = "secondary", "template/tmpl/2/201/201-2-demo"
NAME = {"com.cloud.agent.api.to.NfsTO": {"_url": "nfs://staging.invalid/s3", "_role": "ImageCache", "uuid": "cache-1"}}
DATA = 48 * MiB
LITTLE = 64 * 1024  # bytes: what it takes to look at objects, and far less than an image

OPTIONS = """
[urls]
allow_http = true
allow_networks = ["127.0.0.0/8"]
ports = []

[cloudstack]
servers = ["{server}"]
roles = ["routing", "secondary-storage"]
zone = "1"
pod = "1"
cluster = "1"
name = "kvm7"
ca_file = "{directory}/ca.pem"
retry_first_s = 0.2
retry_last_s = 0.5
staging = ["nfs://staging.invalid/s3"]
staging_file = "{directory}/staging.toml"
"""

STAGING = """
key = "{key}"

[[stores]]
endPoint = "{endpoint}"
bucketName = "{bucket}"
accessKey = "{access}"
secretKey = "{secret}"
"""


@dataclass
class Site:
    """The two links of the daemon, and what is behind it."""

    host: AttachedAgent
    ssvm: AttachedAgent
    agent: AgentHost
    s3: S3Server
    line: FaultProxy  # before the S3 server: the daemon knows no other way
    nginx: NginxServer
    image: Path

    @property
    def bucket(self) -> Body:
        keys = {"accessKey": self.s3.access_key, "secretKey": self.s3.secret_key, "bucketName": BUCKET}
        return {"com.cloud.agent.api.to.S3TO": {**keys, "endPoint": self.endpoint, "httpsFlag": False}}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.line.port}"

    @property
    def pool(self) -> Body:
        where = {"uuid": "p", "id": 1, "poolType": "Filesystem", "path": str(self.agent.pool), "host": "localhost"}
        return {f"{TO}.PrimaryDataStoreTO": where}

    async def ask(self, agent: AttachedAgent, java: str, body: Body, *, meaning: str) -> Body:
        """One command, shown with its answer. Ends the demo unless that is a success."""
        before = self.line.bytes_down
        answer, told = await agent.ask(java, {"wait": 600, **body})
        name, who = java.rpartition(".")[2], "host" if agent is self.host else "ssvm"
        print(f"{who} <- {name}: {meaning}", flush=True)
        shown = _shown(told)
        print(
            f"{who} -> {answer.rpartition('.')[2]}: {shown}; S3 sent {self.line.bytes_down - before} bytes", flush=True
        )
        expect(bool(told.get("result")), f"{name} failed: {told}")
        return told

    async def copy(self, agent: AttachedAgent, source: Body, target: Body, *, meaning: str, **more: Any) -> Body:
        told = await self.ask(
            agent, f"{COMMAND}.CopyCommand", {"srcTO": source, "destTO": target, **more}, meaning=meaning
        )
        (made,) = told["newData"].values()
        return dict(made)

    def in_bucket(self) -> set[str]:
        client = self.s3.client()
        try:
            return keys(client, BUCKET)
        finally:
            client.close()


def _shown(told: Body) -> str:
    new = told.get("newData") or told.get("data")
    if new is not None:
        (fields,) = new.values()
        told = {key: fields[key] for key in ("path", "size", "physicalSize") if fields.get(key)}
    else:
        wanted = ("result", "details", "downloadStatus", "downloadPct", "installPath", "capacityBytes")
        told = {key: told[key] for key in wanted if told.get(key)}
    return json.dumps(told)


def data(kind: str, store: Body, path: str | None = None, **fields: Any) -> Body:
    java = {"template": "TemplateObjectTO", "volume": "VolumeObjectTO", "snapshot": "SnapshotObjectTO"}[kind]
    where = "imageDataStore" if kind == "template" else "dataStore"
    return {f"{TO}.{java}": {"path": path, where: store, "hypervisorType": "KVM", **fields}}


# ---------------------------------------------------------------------------------------------------- the two stories


async def registered(site: Site) -> str:
    """The template's key, once it is in S3."""
    say("a template is registered: from an HTTP server into S3, with nothing in between")
    body = {
        "url": site.nginx.url("template.qcow2"),
        "_store": site.bucket,
        "installPath": TEMPLATE,
        "id": 201,
        "format": "QCOW2",
        "resourceType": "TEMPLATE",
    }
    await site.ask(site.ssvm, f"{API}SecStorageSetupCommand", {"store": site.bucket}, meaning="the S3 store")
    told = await site.ask(site.ssvm, f"{COMMAND}.DownloadCommand", body, meaning="http -> S3")
    while told["downloadStatus"] == "DOWNLOAD_IN_PROGRESS":
        await asyncio.sleep(0.1)
        _, told = await site.ssvm.ask(
            f"{COMMAND}.DownloadProgressCommand", {**body, "jobId": told["jobId"], "request": "GET_STATUS"}
        )
    print(f"ssvm -> DownloadAnswer: {_shown(told)}", flush=True)
    expect(told["downloadStatus"] == "DOWNLOADED", f"the download failed: {told}")
    expect(told["installPath"] in site.in_bucket(), "the template is not in S3")
    return str(told["installPath"])


async def snapshotted(site: Site, volume: str, name: str) -> Body:
    """A snapshot of the volume, in the pool."""
    its_volume = data("volume", site.pool, volume)[f"{TO}.VolumeObjectTO"]
    told = await site.ask(
        site.host,
        f"{COMMAND}.CreateObjectCommand",
        {"data": data("snapshot", site.pool, name=name, volume=its_volume)},
        meaning=f"a snapshot of {volume}",
    )
    return data("snapshot", site.pool, told["data"][f"{TO}.SnapshotObjectTO"]["path"])


async def deployed(site: Site, template: str, volume: str) -> None:
    """A volume from the pool's template, compared and then written to."""
    await site.copy(
        site.host, data("template", site.pool, template), data("volume", site.pool, uuid=volume), meaning="clone"
    )
    await asyncio.to_thread(compare, site.image, "qcow2", site.agent.pool / volume, "qcow2")
    write = ("-c", "write -q -P 7 100M 3M")
    await asyncio.to_thread(run, "qemu-io", "-f", "qcow2", *write, site.agent.pool / volume)


async def straight(site: Site, key: str) -> None:
    say("deployed: the server gives S3 to the host itself")
    before = site.line.bytes_down
    source = data("template", site.bucket, key, format="QCOW2")
    await site.copy(site.host, source, data("template", site.pool, uuid="t-1"), meaning="template S3 -> Primary")
    expect(site.line.bytes_down - before >= DATA, "the template did not come from S3")
    await deployed(site, "t-1", "v-1")

    say("a snapshot of what was written since, backed up into S3, and restored")
    local = await snapshotted(site, "v-1", "snap-1")
    target = data("snapshot", site.bucket, "snapshots/2/1")
    backup = await site.copy(site.host, local, target, meaning="snapshot Primary -> S3")
    expect(backup["path"] in site.in_bucket(), "the backup is not in S3")
    restored = data("volume", site.pool, uuid="r-1")
    await site.copy(
        site.host, data("snapshot", site.bucket, backup["path"]), restored, meaning="snapshot S3 -> Primary"
    )
    await asyncio.to_thread(compare, site.agent.pool / "v-1", "qcow2", site.agent.pool / "r-1", "qcow2")


async def by_name(site: Site, key: str) -> None:
    say("a server that insists on an ImageCache store: it is only a name, and never full")
    await site.ask(site.ssvm, f"{API}SecStorageSetupCommand", {"store": NAME}, meaning="the ImageCache store")
    await site.ask(site.ssvm, f"{API}GetStorageStatsCommand", {"store": NAME}, meaning="the ImageCache store")

    say("deployed by two copies: the first one copies nothing, the second one reads S3")
    before = site.line.bytes_down
    target = data("template", NAME, TEMPLATE.rpartition("/")[0])
    source = data("template", site.bucket, key, format="QCOW2", size=GiB)
    staged = await site.copy(site.ssvm, source, target, meaning="template S3 -> ImageCache")
    expect(site.line.bytes_down - before < LITTLE, "the template was copied into a cache")
    source = data("template", NAME, staged["path"], format="QCOW2")
    target = data("template", site.pool, uuid="t-2")
    await site.copy(site.host, source, target, meaning="template ImageCache -> Primary")
    expect(site.line.bytes_down - before >= DATA, "the template did not come from S3")
    await deployed(site, "t-2", "v-2")

    say("a snapshot, backed up straight into S3 although a cacheTO came with it, staged by name, and restored")
    local = await snapshotted(site, "v-2", "snap-2")
    folder = "snapshots/2/2"
    backup = await site.copy(
        site.host,
        local,
        data("snapshot", site.bucket, folder),
        cacheTO=data("snapshot", NAME, folder),
        meaning="snapshot Primary -> S3, cacheTO ImageCache",
    )
    before = site.line.bytes_down
    source, target = data("snapshot", site.bucket, backup["path"]), data("snapshot", NAME, folder)
    staged_backup = await site.copy(site.ssvm, source, target, meaning="snapshot S3 -> ImageCache")
    expect(site.line.bytes_down - before < LITTLE, "the backup was copied into a cache")
    source, target = data("snapshot", NAME, staged_backup["path"]), data("volume", site.pool, uuid="r-2")
    await site.copy(site.host, source, target, meaning="snapshot ImageCache -> Primary")
    await asyncio.to_thread(compare, site.agent.pool / "v-2", "qcow2", site.agent.pool / "r-2", "qcow2")

    say("a volume on its way out: into an object of its own in S3, then to where it belongs; and the path is given up")
    source, target = data("volume", site.pool, "r-2"), data("volume", NAME, "volumes/2/12", uuid="r-2", format="QCOW2")
    out = await site.copy(site.host, source, target, meaning="volume Primary -> ImageCache")
    source, target = data("volume", NAME, out["path"], format="QCOW2"), data("volume", site.bucket, "volumes/2/12")
    await site.copy(site.ssvm, source, target, meaning="volume ImageCache -> S3")
    for kind, path in (("volume", out["path"]), ("template", staged["path"])):
        given_up = {"data": data(kind, NAME, path)}
        await site.ask(site.ssvm, f"{COMMAND}.DeleteCommand", given_up, meaning=f"{kind} on ImageCache")
    left = site.in_bucket()
    expect({key, "volumes/2/12/r-2.qcow2"} <= left, f"something is missing in S3: {sorted(left)}")
    expect(not any(name.startswith("staging/") for name in left), f"something is left in S3: {sorted(left)}")


# -------------------------------------------------------------------------------------------------------- the scenery


@contextmanager
def servers(directory: Path) -> Iterator[tuple[S3Server, NginxServer]]:
    for name in ("s3", "www"):
        (directory / name).mkdir()
    directory.chmod(0o755)  # nginx's workers are somebody else
    with run_seaweed(directory / "s3") as s3, run_nginx(directory / "www", make_certificates(directory)) as nginx:
        client = s3.client()
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield s3, nginx


async def show(directory: Path, s3: S3Server, nginx: NginxServer) -> None:
    image = make_template(nginx.root / "template.qcow2", data=DATA, size=GiB)
    print(f"template.qcow2: {image.stat().st_size / MiB:.0f} MiB, {GiB // MiB} MiB virtual")
    authority = Authority()
    async with ManagementServer(authority, ping_interval=2) as server, FaultProxy(s3.port) as line:
        (directory / "ca.pem").write_bytes(authority.pem)
        secret = STAGING.format(
            key=random.SystemRandom().randbytes(24).hex(),
            endpoint=f"http://127.0.0.1:{line.port}",
            bucket=BUCKET,
            access=s3.access_key,
            secret=s3.secret_key,
        )
        (directory / "staging.toml").touch(mode=0o600)
        (directory / "staging.toml").write_text(secret)
        options = OPTIONS.format(server=server.address, directory=directory)
        with agent_host(options, started=False) as agent:
            agent.environment["TMPDIR"] = str(agent.root)
            watch = Watch(agent.root, agent.pool)
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(watch.forever())
                say("the daemon connects to the management server, once as a host and once as a secondary storage VM")
                await asyncio.to_thread(agent.start)
                host, ssvm = await server.agent(timeout=60), await server.agent(kind="SecondaryStorage", timeout=60)
                site = Site(host, ssvm, agent, s3, line, nginx, image)
                filer = {"id": 1, "uuid": "p", "host": "localhost", "path": str(agent.pool), "port": 0}
                pool = {"add": True, "pool": {**filer, "type": "Filesystem"}, "localPath": str(agent.pool)}
                await site.ask(host, f"{API}ModifyStoragePoolCommand", pool, meaning="the pool")
                key = await registered(site)
                await straight(site, key)
                await by_name(site, key)
                expect(await asyncio.to_thread(agent.stop) == 0, "the daemon did not end in order")
                watching.cancel()
            expect(server.violations == [], f"the management server objects: {server.violations}")
            judged(agent, watch, s3)


def judged(agent: AgentHost, watch: Watch, s3: S3Server) -> None:
    """What the daemon's directories and its log show of staging."""
    say("staged anywhere?")
    largest = max(watch.seen, key=lambda name: watch.seen[name])
    print(f"of {len(watch.seen)} files outside of the pool the largest had {watch.seen[largest]} bytes: {largest}")
    expect(watch.seen[largest] < DATA // 4, f"{largest} looks like a copy of an image")
    expect(agent.files() == ["r-1", "r-2", "t-1", "t-2", "v-1", "v-2"], f"in the pool: {agent.files()}")
    log = agent.log.read_text()
    copies = [json.loads(line) for line in log.splitlines() if line.startswith("{") and "staged by name" in line]
    for one in copies:
        print(f"log: {one['event']}, {one['ref']}, {one['size']} bytes")
    expect(len(copies) == 2, "the log should tell of two objects that were staged by name")
    expect(s3.secret_key not in log, "a secret is in the log")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        directory = Path(name)
        say("a real S3 server (SeaweedFS), an HTTP server, and a template on it")
        with servers(directory) as (s3, nginx):
            asyncio.run(show(directory, s3, nginx))
    print("\ndemo-cloudstack: ok")


if __name__ == "__main__":
    main()
