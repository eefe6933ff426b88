"""The daemon as a management server has it: storage commands over both links, on real directories, and an orderly end."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.agent_process import AgentHost, agent_host
from tests.doubles.management_server.attached import API, AttachedAgent
from tests.doubles.management_server.authority import Authority, shared_authority
from tests.doubles.management_server.packets import Body
from tests.doubles.management_server.server import ManagementServer

STORAGE = "org.apache.cloudstack.storage"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return shared_authority()


@asynccontextmanager
async def commanded(server: ManagementServer, roles: str) -> AsyncIterator[AgentHost]:
    """A daemon that knows the server. It is stopped in order at the end."""
    with agent_host(started=False) as host:
        (host.root / "ca.pem").write_bytes(server.authority.pem)
        with host.config.open("a") as config:
            config.write(
                f'\n[cloudstack]\nservers = ["{server.address}"]\nroles = {roles}\nzone = "1"\npod = "1"\ncluster = "1"\n'
                f'ca_file = "{host.root}/ca.pem"\nretry_first_s = 0.2\nretry_last_s = 0.5\n'
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
        assert "link down" in host.log.read_text()
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
