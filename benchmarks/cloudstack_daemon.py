"""How late a busy daemon's pings are: a thousand commands of a management server, fifty at once, and eight of them copies of an
image in S3 into a pool, one after another, for as long as the others last. Daemon, S3 and this are processes of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.harness import MIB
from tests.agent_process import AgentHost, agent_host
from tests.doubles.management_server.attached import API, AttachedAgent, Disconnected
from tests.doubles.management_server.authority import Authority
from tests.doubles.management_server.packets import Body
from tests.doubles.management_server.server import ManagementServer
from tests.images import make_qcow2
from tests.servers import S3Server, run_seaweed

COMMAND, TO = "org.apache.cloudstack.storage.command", "org.apache.cloudstack.storage.to"
BUCKET, KEY = "images", "template/tmpl/2/201/a/image.qcow2"
IMAGE = 16 * MIB
TICK_S = 0.05

OPTIONS = """
[cloudstack]
servers = ["{server}"]
zone = "1"
pod = "1"
cluster = "1"
ca_file = "{directory}/ca.pem"
"""


async def busy_daemon(
    directory: Path, *, commands: int, at_once: int, copies: int, interval_s: int
) -> tuple[float, int]:
    """By how much of the interval the latest ping was late, less what this process itself was late by; and the copies done."""
    (directory / "s3").mkdir()
    with run_seaweed(directory / "s3") as s3:
        image = make_qcow2(directory / "image.qcow2", 2 * IMAGE, extents=[(0, IMAGE)])
        client = s3.client()
        client.create_bucket(Bucket=BUCKET)
        client.upload_file(str(image), BUCKET, KEY)
        client.close()
        async with ManagementServer(Authority(), ping_interval=interval_s) as server:
            (directory / "ca.pem").write_bytes(server.authority.pem)
            options = OPTIONS.format(server=server.address, directory=directory)
            with agent_host(options, started=False) as host:
                host.config.write_text(
                    host.config.read_text().replace("[agent]\n", f"[agent]\nconcurrency = {at_once}\n")
                )
                await asyncio.to_thread(host.start)
                agent = await server.agent(timeout=60)
                return await _load(agent, host, s3, commands, at_once - copies, copies, interval_s)


async def _load(
    agent: AttachedAgent, host: AgentHost, s3: S3Server, commands: int, others: int, copies: int, interval_s: int
) -> tuple[float, int]:
    store = {"uuid": "p", "poolType": "Filesystem", "path": str(host.pool)}
    asked = {"volumeUuids": ["t-0-0", "t-1-0"], "poolUuid": "p", "poolType": "Filesystem", "wait": 600}
    filer = {"id": 1, "uuid": "p", "host": "localhost", "path": str(host.pool), "port": 0, "type": "Filesystem"}
    await _ask(agent, f"{API}ModifyStoragePoolCommand", {"add": True, "pool": filer})
    ticks: list[float] = []
    turns = asyncio.Semaphore(others)
    done = 0

    async def copy(worker: int) -> None:
        nonlocal done
        for number in itertools.count():
            await _ask(agent, f"{COMMAND}.CopyCommand", _copy(s3, store, f"t-{worker}-{number}"))
            done += 1
            (host.pool / f"t-{worker}-{number}").unlink()

    async def one() -> None:
        async with turns:
            await _ask(agent, f"{API}GetVolumeStatsCommand", asked)

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(TICK_S)

    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(copy(worker)) for worker in range(copies)]
        beside.append(group.create_task(tick()))
        pings = len(agent.pings)
        await asyncio.gather(*(one() for _ in range(commands)))
        while len(agent.pings) < pings + 3:
            await asyncio.sleep(TICK_S)
        for task in beside:
            task.cancel()
    noise = _longest(ticks) - TICK_S
    return max(0.0, _longest(agent.pings) - interval_s - noise) / interval_s, done


def _longest(moments: list[float]) -> float:
    return max(after - before for before, after in itertools.pairwise(moments))


async def _ask(agent: AttachedAgent, java: str, fields: Body) -> None:
    with suppress(Disconnected):
        _, told = await agent.ask(java, {"wait": 600, **fields})
        if not told["result"]:
            raise AssertionError(f"{java}: {told.get('details')}")


def _copy(s3: S3Server, pool: Body, name: str) -> Body:
    keys = {"accessKey": s3.access_key, "secretKey": s3.secret_key, "bucketName": BUCKET, "endPoint": s3.endpoint}
    image = {"path": KEY, "format": "QCOW2", "imageDataStore": {"com.cloud.agent.api.to.S3TO": keys}}
    target = {"uuid": name, "imageDataStore": {f"{TO}.PrimaryDataStoreTO": pool}}
    return {"srcTO": {f"{TO}.TemplateObjectTO": image}, "destTO": {f"{TO}.TemplateObjectTO": target}}
