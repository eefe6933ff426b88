"""An agent behind the HTTP API, on a real dispatcher and journal, whose commands do what a test says."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from agent.config import Config
from agent.dispatcher import Dispatcher, Limits
from agent.explain import Explainable
from agent.journal import Journal
from agent.metrics import Metrics
from agent.transports.contract import AgentStatus
from agent.transports.http_api.route import Api
from agent.transports.http_api.server import HttpApi
from hypervisors.explaining import Explanation, How, Side
from stores.contract import Kind
from tests.doubles.executor import HeldExecutor

POOL = {"storeType": "primary", "uuid": "p", "poolType": "Filesystem"}


def delete(command_id: str | None = None, path: str = "v", **more: Any) -> dict[str, Any]:
    named = {"id": command_id} if command_id else {}
    return {"command": "Delete", **named, "data": {"type": "volume", "path": path, "dataStore": POOL}, **more}


def explanation(asked: Explainable) -> Explanation:
    side = Side("p", "v", (Kind.RANGE_READER,), "because", (Kind.RANGE_READER,), Kind.RANGE_READER, "native", ("fits",))
    return Explanation("copy", "KVM", How.IN_PLACE, side, None, None)


def http_api(
    dispatcher: Dispatcher, config: Config, metrics: Metrics, *, heartbeat_s: float = 15.0, **options: Any
) -> HttpApi:
    def status() -> AgentStatus:
        now = dispatcher.status()
        return AgentStatus(
            version="1",
            hypervisor="KVM",
            started_at=1.0,
            ready=now.accepting,
            accepting=now.accepting,
            draining=now.draining,
            journal_usable=now.journal_usable,
            waiting=now.accepted,
            running=now.running,
            queue_limit=now.queue_limit,
            concurrency=now.concurrency,
        )

    return HttpApi(
        Api(dispatcher, explanation, status, metrics, config.api.request_timeout_s, heartbeat_s), config.api, **options
    )


@dataclass
class Agent:
    """An agent whose commands do what the test says."""

    work: HeldExecutor
    dispatcher: Dispatcher
    api: HttpApi
    metrics: Metrics
    socket: Path
    client: aiohttp.ClientSession

    async def json(self, method: str, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
        async with self.client.request(method, f"http://agent{path}", **options) as response:
            return response.status, await response.json()

    async def started(self, command_id: str) -> Any:
        async with asyncio.timeout(20):
            while command_id not in self.work.runs:
                await asyncio.sleep(0.001)
        return self.work.runs[command_id]


@asynccontextmanager
async def agent(
    directory: Path, *, limits: Limits | None = None, heartbeat_s: float = 15.0, **api: Any
) -> AsyncIterator[Agent]:
    """Afterwards no task, socket or descriptor of it is left."""
    tasks, descriptors = asyncio.all_tasks(), len(os.listdir("/proc/self/fd"))
    path = directory / "api.sock"
    config = Config.model_validate({"api": {"socket": str(path), **api}})
    work = HeldExecutor()
    metrics = Metrics()
    async with (
        Journal(directory / "state") as journal,
        Dispatcher(journal, work, limits or Limits(), event_interval_s=0.01) as dispatcher,
    ):
        served = http_api(dispatcher, config, metrics, heartbeat_s=heartbeat_s)
        await served.start()
        try:
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client:
                yield Agent(work, dispatcher, served, metrics, path, client)
        finally:
            await served.stop()
    assert not path.exists()
    async with asyncio.timeout(10):
        while asyncio.all_tasks() != tasks or len(os.listdir("/proc/self/fd")) > descriptors:
            await asyncio.sleep(0.01)


def outcome(answer: dict[str, Any]) -> tuple[str, bool]:
    return answer["state"], answer["result"]
