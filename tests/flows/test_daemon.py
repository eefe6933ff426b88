"""The daemon as a process: it starts, serves, stops in good order, survives its own death, and says why it cannot start."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from stores.contract import MiB
from tests.servers import NginxServer

AGENT = Path(sys.executable).with_name("storage-agent")
LIMIT_S = 60.0

CONFIG = """
[agent]
state_dir = "{root}/state"
runtime_dir = "{root}/run"
shutdown_s = {shutdown_s}

[pools]
roots = ["{root}/pools"]

[urls]
allow_http = true
allow_networks = ["127.0.0.0/8"]
ports = []

[api]
socket = "{root}/run/api.sock"

[logs]
format = "json"
"""


@dataclass
class Place:
    """Directories of one agent."""

    root: Path

    @property
    def pool(self) -> Path:
        return self.root / "pools" / "one"

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.pool)) for path in self.pool.rglob("*") if not path.is_dir())

    def volume(self, name: str, **fields: object) -> dict[str, Any]:
        store = {"storeType": "primary", "uuid": "one", "poolType": "Filesystem", "path": str(self.pool)}
        return {"type": "volume", "path": name, "dataStore": store, **fields}

    def copy(self, command_id: str, url: str, path: str) -> dict[str, Any]:
        store = {"storeType": "image", "uri": url}
        source = {"type": "template", "path": path, "format": "RAW", "imageDataStore": store}
        return {
            "id": command_id,
            "command": "Copy",
            "source": source,
            "destination": self.volume("v-1", format="RAW"),
        }


@pytest.fixture
def place() -> Iterator[Place]:
    root = Path(tempfile.mkdtemp(prefix="sa-daemon-"))
    try:
        made = Place(root)
        made.pool.mkdir(parents=True)
        configure(made)
        yield made
    finally:
        shutil.rmtree(root)


def configure(place: Place, shutdown_s: float = 20) -> None:
    (place.root / "agent.toml").write_text(CONFIG.format(root=place.root, shutdown_s=shutdown_s))


class Daemon:
    """A running agent and a client of its API."""

    def __init__(self, place: Place, process: subprocess.Popen[bytes], session: aiohttp.ClientSession) -> None:
        self.place = place
        self.process = process
        self._session = session

    async def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        async with self._session.request(method, f"http://agent{path}", json=body) as answer:
            return answer.status, await answer.json()

    async def submit(self, body: object, *, wait: float = 0) -> Any:
        return (await self.call("POST", f"/v1/commands?wait={wait}", body))[1]

    async def transferring(self, command_id: str) -> None:
        """Returns when the command has begun to write its volume, and has not ended."""
        async with asyncio.timeout(LIMIT_S):
            while not self.place.files():
                answer = (await self.call("GET", f"/v1/commands/{command_id}"))[1]
                assert answer["state"] in ("accepted", "running"), answer
                await asyncio.sleep(0.01)

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, LIMIT_S)


@contextmanager
def process_of(place: Place, *, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with (place.root / "log").open("ab") as log:
        process = subprocess.Popen(
            [AGENT, "run", "--config", place.root / "agent.toml"],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **(environment or {})},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@asynccontextmanager
async def daemon(place: Place) -> AsyncIterator[Daemon]:
    """Ready when the context begins, which systemd is told in the same moment."""
    with notifications(place) as notified, process_of(place, environment={"NOTIFY_SOCKET": notified.path}) as process:
        ready = await asyncio.to_thread(notified.wait_for, "READY=1")
        assert ready, (place.root / "log").read_text()
        connector = aiohttp.UnixConnector(str(place.root / "run" / "api.sock"))
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Daemon(place, process, session)


class Notified:
    """What systemd would see."""

    def __init__(self, path: str, receiver: socket.socket) -> None:
        self.path = path
        self.messages: list[str] = []
        self._receiver = receiver

    def wait_for(self, line: str) -> bool:
        self._receiver.settimeout(LIMIT_S)
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            try:
                self.messages.append(self._receiver.recv(4096).decode())
            except TimeoutError:
                return False
            if line in self.messages[-1].split("\n"):
                return True
        return False


@contextmanager
def notifications(place: Place) -> Iterator[Notified]:
    path = str(place.root / "notify")
    Path(path).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        yield Notified(path, receiver)


def logged(place: Place) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place.root / "log").read_text().splitlines()]


def big_template(nginx: NginxServer, name: str) -> str:
    """A raw image that /slow/ takes seconds to send, at 1 MiB/s for each connection; its hash."""
    content = os.urandom(16 * MiB)
    (nginx.root / name).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


async def test_it_starts_serves_and_stops(place: Place) -> None:
    async with daemon(place) as agent:
        answer = await agent.submit({"id": "c-1", "command": "Ping"}, wait=LIMIT_S)
        assert (answer["state"], answer["result"]) == ("succeeded", True)
        made = await agent.submit(
            {"id": "c-2", "command": "CreateObject", "data": place.volume("v-1", size=MiB)}, wait=LIMIT_S
        )
        assert made["state"] == "succeeded"
        status = (await agent.call("GET", "/v1/status"))[1]
        assert status["ready"]
        agent.process.send_signal(signal.SIGTERM)
        assert await agent.ended() == 0
    assert not (place.root / "run" / "api.sock").exists()
    assert place.files() == [".storage-agent/images/v-1.json", "v-1"]
    assert [record["event"] for record in logged(place)][-1] == "stopped"
    async with daemon(place) as agent:
        assert await agent.submit({"id": "c-1", "command": "Ping"}) == answer
        assert (await agent.call("GET", "/v1/commands/c-2"))[1] == made


async def test_systemd_hears_how_it_is_doing(place: Place) -> None:
    with notifications(place) as notified:
        environment = {"NOTIFY_SOCKET": notified.path, "WATCHDOG_USEC": "200000"}
        with process_of(place, environment=environment) as process:
            for line in ("STATUS=recovering", "READY=1", "WATCHDOG=1", "WATCHDOG=1"):
                assert notified.wait_for(line), notified.messages
            process.send_signal(signal.SIGINT)
            assert notified.wait_for("STOPPING=1")
            assert process.wait(LIMIT_S) == 0
    assert any("STATUS=ready; nothing to recover" in message for message in notified.messages)


async def test_death_in_the_middle_of_a_transfer_is_undone_and_reported(place: Place, nginx: NginxServer) -> None:
    content = big_template(nginx, "daemon-death.raw")
    command = place.copy("c-1", nginx.url("slow"), "daemon-death.raw")
    async with daemon(place) as agent:
        await agent.submit(command)
        waiting = await agent.submit({**command, "id": "c-2"})  # for the same volume: it waits for the first
        assert waiting["state"] == "accepted"
        await agent.transferring("c-1")
        assert len(place.files()) == 1  # unfinished
        agent.process.kill()
        await agent.ended()
    async with daemon(place) as agent:
        assert place.files() == []
        one, other = [(await agent.call("GET", f"/v1/commands/{name}"))[1] for name in ("c-1", "c-2")]
        assert one["state"] == other["state"] == "interrupted"
        assert one["error"]["kind"] == other["error"]["kind"] == "Interrupted"
        assert "was removed" in one["error"]["message"]
        assert "before" in other["error"]["message"]
        assert await agent.submit(command) == one
        fast = place.copy("c-3", nginx.url(""), "daemon-death.raw")
        assert (await agent.submit(fast, wait=LIMIT_S))["state"] == "succeeded"
    assert hashlib.sha256((place.pool / "v-1").read_bytes()).hexdigest() == content
    fates = [record for record in logged(place) if record["event"] == "recovered a command"]
    assert {record["command_id"]: record["fate"] for record in fates} == {"c-1": "undone", "c-2": "never_begun"}


@pytest.mark.parametrize("enough", [True, False])
async def test_stopping_lets_a_transfer_finish_if_there_is_time_and_undoes_it_if_not(
    place: Place, nginx: NginxServer, enough: bool
) -> None:
    configure(place, shutdown_s=LIMIT_S if enough else 0.2)
    content = big_template(nginx, "daemon-stop.raw")
    async with daemon(place) as agent:
        await agent.submit(place.copy("c-1", nginx.url("slow"), "daemon-stop.raw"))
        await agent.transferring("c-1")
        waiting = asyncio.create_task(
            agent.submit(place.copy("c-1", nginx.url("slow"), "daemon-stop.raw"), wait=LIMIT_S)
        )
        await asyncio.sleep(0.1)
        agent.process.send_signal(signal.SIGTERM)
        answer = await waiting  # whoever waits is answered before the agent goes
        assert await agent.ended() == 0
    if enough:
        assert answer["state"] == "succeeded"
        assert hashlib.sha256((place.pool / "v-1").read_bytes()).hexdigest() == content
    else:
        assert answer["state"] == "interrupted"
        assert place.files() == []


async def test_cancelling_over_the_api_leaves_nothing(place: Place, nginx: NginxServer) -> None:
    big_template(nginx, "daemon-cancel.raw")
    async with daemon(place) as agent:
        await agent.submit(place.copy("c-1", nginx.url("slow"), "daemon-cancel.raw"))
        await agent.transferring("c-1")
        answer = (await agent.call("DELETE", "/v1/commands/c-1"))[1]
        assert answer["state"] == "cancelled"
        assert place.files() == []


async def test_a_second_agent_on_the_same_state_refuses_to_start(place: Place) -> None:
    async with daemon(place) as agent:
        with process_of(place) as second:
            assert await asyncio.to_thread(second.wait, LIMIT_S) == 4  # somebody has to act
        assert "in use by another agent" in (place.root / "log").read_text()
        assert (await agent.submit({"command": "Ping"}, wait=LIMIT_S))["state"] == "succeeded"


async def test_a_damaged_journal_keeps_it_from_starting(place: Place) -> None:
    (place.root / "state").mkdir()
    (place.root / "state" / "journal.sqlite3").write_bytes(b"no database " * 1000)
    with process_of(place) as process:
        assert await asyncio.to_thread(process.wait, LIMIT_S) == 4
    text = (place.root / "log").read_text()
    assert "JournalUnusable" in text
    assert "Traceback" not in text


async def test_what_a_killed_agent_left_in_its_runtime_directory_is_removed(place: Place) -> None:
    exports = place.root / "run" / "nbd"
    exports.mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(str(exports / "0123456789ab.sock"))
    keyring = place.root / "run" / "rbd" / "0123456789ab" / "keyring"
    keyring.parent.mkdir(parents=True, mode=0o700)
    keyring.write_text("[client.cloud]\n\tkey = secret\n")
    async with daemon(place) as agent:
        assert list(exports.glob("*.sock")) == []
        assert not keyring.exists()
        agent.process.kill()
        await agent.ended()
    async with daemon(place) as agent:  # the API's own socket was left as well
        assert (await agent.call("GET", "/v1/status"))[0] == 200
