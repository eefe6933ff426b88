"""A role whose commands do what a test says, and a link of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from agent.commands import Failure
from agent.transports.cloudstack.json_codec import Decoded
from agent.transports.cloudstack.link import Link, LinkSettings
from agent.transports.cloudstack.models import Envelope, WireAnswer, WireCommand
from agent.transports.cloudstack.models_session import (
    PingCommand,
    PingRoutingCommand,
    StartupCommand,
    StartupRoutingCommand,
)
from agent.transports.cloudstack.servers import Servers, parse_server
from agent.transports.cloudstack.state import StateDirectory
from agent.transports.cloudstack.wire import Message
from stores.errors import NotFound
from tests.doubles.management_server.server import ManagementServer


class ScriptedRole:
    """A host. Commands say in their context what becomes of them: `sleep` seconds, `gate` to wait for, `fail` how."""

    name = "routing"

    def __init__(self) -> None:
        self.executed: Counter[str] = Counter()
        self.running = 0
        self.most_running = 0
        self.cancelled = 0
        self.deadlines: list[float] = []
        self.gate = asyncio.Event()

    def introduction(self, local_address: str) -> Sequence[StartupCommand]:
        return [
            StartupRoutingCommand(
                guid="0c6f-LibvirtComputingResource", name="kvm7", dataCenter="1", privateIpAddress=local_address
            )
        ]

    def ping(self, host_id: int) -> PingCommand:
        return PingRoutingCommand(hostId=host_id)

    async def execute(self, command: WireCommand, *, within_s: float) -> WireAnswer:
        self.executed[command.java.rpartition(".")[2]] += 1
        self.deadlines.append(within_s)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._act(command)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _act(self, command: WireCommand) -> WireAnswer:
        said = command.contextMap
        if "sleep" in said:
            await asyncio.sleep(float(said["sleep"]))
        if "gate" in said:
            await self.gate.wait()
        match said.get("fail"):
            case "answer":
                return command.answered_by(result=False, details="it failed")
            case "known":
                raise NotFound("there is no such disk; look for its name")
            case "unforeseen":
                raise ZeroDivisionError("secret detail")
        return command.answered_by(result=True, details=said.get("say"))


class Heard:
    """A watcher that keeps everything."""

    def __init__(self) -> None:
        self.sent_items: list[Envelope] = []
        self.received_items: list[Decoded] = []
        self.failures: list[Failure] = []
        self.ups = 0

    def sent(self, message: Message, items: Sequence[Envelope]) -> None:
        self.sent_items += items

    def received(self, message: Message, items: Sequence[Decoded]) -> None:
        self.received_items += items

    def up(self) -> None:
        self.ups += 1

    def down(self, failure: Failure | None) -> None:
        if failure is not None:
            self.failures.append(failure)


@asynccontextmanager
async def linked(
    *servers: ManagementServer | str,
    state: Path,
    role: ScriptedRole | None = None,
    settings: LinkSettings | None = None,
    watcher: Heard | None = None,
) -> AsyncIterator[Link]:
    """A link that runs, to servers whose authority is pinned, with back-offs too short to wait for. Leaving stops it, and
    nothing of it is left then."""
    pins = tuple(server.authority.certificate for server in servers if isinstance(server, ManagementServer))
    settings = settings or LinkSettings(pins=pins, connect_s=5, retry_first_s=0.05, retry_most_s=0.2, move_after_s=0.05)
    addresses = [server if isinstance(server, str) else server.address for server in servers]
    link = Link(
        role or ScriptedRole(),
        Servers([parse_server(address) for address in addresses]),
        StateDirectory(state),
        settings,
        watcher=watcher or Heard(),
    )
    task = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert [one for one in asyncio.all_tasks() if _is_ours(one)] == []
        if not task.cancelled():
            task.result()


def _is_ours(task: asyncio.Task[object]) -> bool:
    return "/agent/transports/" in getattr(task.get_coro(), "cr_code", asyncio.sleep.__code__).co_filename
