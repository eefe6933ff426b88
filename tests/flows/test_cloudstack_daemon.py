"""The daemon as a management server has it: storage commands over both links, on real directories, and an orderly end."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from stores.contract import MiB
from stores.to import ImageFormat
from tests.agent_process import AgentHost, agent_host
from tests.doubles.disk_images import content_of
from tests.doubles.management_server.attached import API, AttachedAgent
from tests.doubles.management_server.authority import Authority, shared_authority
from tests.doubles.management_server.packets import Body
from tests.doubles.management_server.server import ManagementServer
from tests.images import make_qcow2
from tests.servers import S3Server

STORAGE = "org.apache.cloudstack.storage"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return shared_authority()


@asynccontextmanager
async def commanded(server: ManagementServer, roles: str, options: str = "") -> AsyncIterator[AgentHost]:
    """A daemon that knows the server, with more `options` of that section. It is stopped in order at the end."""
    with agent_host(started=False) as host:
        (host.root / "ca.pem").write_bytes(server.authority.pem)
        with host.config.open("a") as config:
            config.write(
                f'\n[cloudstack]\nservers = ["{server.address}"]\nroles = {roles}\nzone = "1"\npod = "1"\ncluster = "1"\n'
                f'ca_file = "{host.root}/ca.pem"\nretry_first_s = 0.2\nretry_last_s = 0.5\n{options}'
            )
        await asyncio.to_thread(host.start)
        yield host
        assert await asyncio.to_thread(host.stop) == 0


def pool(host: AgentHost) -> Body:
    filer = {"id": 1, "uuid": "p", "host": "localhost", "path": str(host.pool), "port": 0, "type": "Filesystem"}
    return {"add": True, "pool": filer, "localPath": str(host.pool), "wait": 60}


def volume(host: AgentHost, name: str) -> Body:
    store = {"uuid": "p", "id": 1, "poolType": "Filesystem", "path": str(host.pool), "host": "localhost"}
    fields = {
        "uuid": name,
        "name": name,
        "path": name,
        "size": 1 << 20,
        "format": "QCOW2",
        "dataStore": {f"{STORAGE}.to.PrimaryDataStoreTO": store},
    }
    return {f"{STORAGE}.to.VolumeObjectTO": fields}


async def test_a_volumes_life_on_both_links(authority: Authority) -> None:
    server = ManagementServer(authority)
    async with server:
        pass  # it has its port now, and is away
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(commanded(server, '["routing", "secondary-storage"]'))
        async with asyncio.timeout(60):
            while "link down" not in host.log.read_text():
                await asyncio.sleep(0.02)
        async with server:
            agent = await server.agent(timeout=60)
            storage = await server.agent(kind="SecondaryStorage", timeout=60)
            await live(host, agent, storage)
            await stack.aclose()
            for one in (agent, storage):
                await asyncio.wait_for(one.gone.wait(), 10)
                assert one.reason == "shutdown: sig.kill"
            assert server.violations == []


async def live(host: AgentHost, agent: AttachedAgent, storage: AttachedAgent) -> None:
    guid, other = (one.startup[0][1]["guid"] for one in (agent, storage))
    assert uuid.UUID(guid[:36]) != uuid.UUID(other[:36])
    assert agent.host_id != storage.host_id

    _, told = await agent.ask(f"{API}ModifyStoragePoolCommand", pool(host))
    assert told["result"], told
    assert told["poolInfo"]["capacityBytes"] > 0

    name = str(uuid.uuid4())
    create = {"data": volume(host, name), "wait": 60}
    answer, made = await agent.ask(f"{STORAGE}.command.CreateObjectCommand", create)
    assert (answer, made["result"]) == (f"{STORAGE}.command.CreateObjectAnswer", True), made
    assert host.files() == [name]
    assert made["data"][f"{STORAGE}.to.VolumeObjectTO"]["path"] == name

    answer, gone = await agent.ask(f"{STORAGE}.command.DeleteCommand", create)
    assert (answer, gone["result"]) == (f"{API}Answer", True), gone
    assert host.files() == []

    answer, told = await storage.ask(f"{API}ModifyStoragePoolCommand", pool(host))
    assert (answer, told["result"]) == (f"{API}UnsupportedAnswer", False)


NAME = {"com.cloud.agent.api.to.NfsTO": {"_url": "nfs://staging.invalid/s3", "_role": "ImageCache"}}
KEY = "template/tmpl/2/201/201-2-aaaa/debian.qcow2"


def template(store: Body, path: str | None = None, **fields: str) -> Body:
    return {f"{STORAGE}.to.TemplateObjectTO": {"path": path, "imageDataStore": store, "format": "QCOW2", **fields}}


def staging_file(path: Path, seaweed: S3Server, bucket: str) -> Path:
    path.write_text(
        f'key = "{"k" * 32}"\n[[stores]]\nendPoint = "{seaweed.endpoint}"\nbucketName = "{bucket}"\n'
        f'accessKey = "{seaweed.access_key}"\nsecretKey = "{seaweed.secret_key}"\n'
    )
    return path


async def test_what_was_staged_by_name_outlives_a_kill(
    authority: Authority, seaweed: S3Server, bucket: str, tmp_path: Path
) -> None:
    """The server keeps nothing but the path, and the agent nothing at all."""
    image = make_qcow2(tmp_path / "debian.qcow2", 8 * MiB)
    client = seaweed.client()
    client.upload_file(str(image), bucket, KEY)
    client.close()
    file = staging_file(tmp_path / "staging.toml", seaweed, bucket)
    options = f'staging = ["nfs://staging.invalid/s3"]\nstaging_file = "{file}"\n'
    keys = {"accessKey": "SERVER", "secretKey": "s3rver", "bucketName": bucket, "endPoint": seaweed.endpoint}
    s3, copy = {"com.cloud.agent.api.to.S3TO": keys}, f"{STORAGE}.command.CopyCommand"
    async with (
        ManagementServer(authority) as server,
        commanded(server, '["routing", "secondary-storage"]', options) as host,
    ):
        storage = await server.agent(kind="SecondaryStorage", timeout=60)
        source, target = template(s3, KEY), template(NAME, "template/tmpl/2/201")
        _, told = await storage.ask(copy, {"srcTO": source, "destTO": target})
        assert told["result"], told
        path = told["newData"][f"{STORAGE}.to.TemplateObjectTO"]["path"]

        await asyncio.to_thread(host.stop, signal.SIGKILL)
        await asyncio.to_thread(host.start)
        agent = await server.agent(number=2, timeout=60)
        assert (await agent.ask(f"{API}ModifyStoragePoolCommand", pool(host)))[1]["result"]
        place = {"uuid": "p", "poolType": "Filesystem", "path": str(host.pool)}
        target = template({f"{STORAGE}.to.PrimaryDataStoreTO": place}, uuid="t-201")
        _, told = await agent.ask(copy, {"srcTO": template(NAME, path), "destTO": target})
        assert told["result"], told
        assert content_of(host.pool / "t-201", ImageFormat.QCOW2) == content_of(image, ImageFormat.QCOW2)
        assert server.violations == []
        for secret in (seaweed.secret_key, "s3rver", "k" * 32):
            assert secret not in host.log.read_text()
            assert secret not in path


def test_a_staging_file_that_cannot_be_used_is_found_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "staging.toml").write_text('key = "s3cr3t"\n')
    section = f'[cloudstack]\nstaging = ["nfs://staging.invalid/s3"]\nstaging_file = "{tmp_path}/staging.toml"\n'
    servers = 'servers = ["ms1"]\nzone = "1"\npod = "1"\ncluster = "1"\nallow_unverified = true\n'
    with agent_host(section + servers, started=False) as host:
        done = host("check-config")
        assert done.code != 0
        assert "staging_file" in done.err + done.out
        assert "s3cr3t" not in done.err + done.out
