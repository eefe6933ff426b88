"""A link's life with a management server: introduction, pings, requests, moves, and what goes wrong."""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from agent.transports.cloudstack import requests
from agent.transports.cloudstack.link import LinkSettings
from agent.transports.cloudstack.models_session import StartupCommand
from agent.transports.cloudstack.session import Phase
from agent.transports.cloudstack.tls import Identity
from stores.contract import MiB
from tests.doubles.cloudstack_role import Heard, ScriptedRole, linked
from tests.doubles.management_server.attached import API, AttachedAgent, Disconnected
from tests.doubles.management_server.authority import Authority, shared_authority
from tests.doubles.management_server.packets import IN_SEQUENCE, Body, Packet
from tests.doubles.management_server.server import ManagementServer
from tests.wire.golden_messages import tree

STORAGE = "org.apache.cloudstack.storage.command"
LB = "org.apache.cloudstack.agent.lb"
CA = "org.apache.cloudstack.ca"
STATS = f"{API}GetStorageStatsCommand"
POOL: Body = {
    "add": True,
    "pool": {"id": 1, "uuid": "p-1", "host": "nfs", "path": "/p", "port": 2049, "type": "NetworkFilesystem"},
    "localPath": "/mnt//p-1",
}
QUICK = 1  # s, the shortest interval that a server can tell


@pytest.fixture(scope="module")
def authority() -> Authority:
    return shared_authority()


@pytest.fixture
async def server(authority: Authority) -> AsyncIterator[ManagementServer]:
    async with ManagementServer(authority) as made:
        yield made
        assert made.violations == []


def does(**what: object) -> Body:
    """Fields of a command that make `ScriptedRole` do it."""
    return {"contextMap": {name: str(value) for name, value in what.items()}, "wait": 60}


async def soon(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


# ------------------------------------------------------------------------------------------------------ introduction


async def test_session_script(server: ManagementServer, tmp_path: Path) -> None:
    server.on_connect = [(f"{API}ModifyStoragePoolCommand", POOL), (f"{API}CheckNetworkCommand", {})]
    role = ScriptedRole()
    async with linked(server, state=tmp_path, role=role) as link:
        agent = await server.agent()
        (name, startup), *others = agent.startup
        assert name == f"{API}StartupRoutingCommand"
        assert not others
        assert startup["privateIpAddress"] == "127.0.0.1"
        assert startup["connectionTransferred"] is False
        assert startup["msHostList"] == "127.0.0.1"
        assert (await agent.ask(STATS, does(say="ok")))[1]["details"] == "ok"
        assert link.status.phase is Phase.READY
        assert link.status.host_id == agent.host_id
    assert server.clients == [None]
    assert role.executed["GetStorageStatsCommand"] == 1
    assert agent.dropped == []


async def test_leaves_in_order(server: ManagementServer, tmp_path: Path) -> None:
    async with linked(server, state=tmp_path):
        agent = await server.agent()
    await asyncio.wait_for(agent.gone.wait(), 5)
    assert agent.reason == "shutdown: sig.kill"


async def test_host_id_is_kept_over_restarts(server: ManagementServer, tmp_path: Path) -> None:
    async with linked(server, state=tmp_path / "deep" / "state"):
        first = await server.agent()
    async with linked(server, state=tmp_path / "deep" / "state") as link:
        second = await server.agent(2)
        assert link.status.host_id == second.host_id == first.host_id
    directory = tmp_path / "deep" / "state"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [(path.name, stat.S_IMODE(path.stat().st_mode)) for path in directory.iterdir()] == [("host-id", 0o600)]


@pytest.mark.parametrize("where", ["refuse", "refuse_startup"])
async def test_refusal_is_shown_and_tried_again(server: ManagementServer, tmp_path: Path, where: str) -> None:
    setattr(server, where, "you have sent incorrect data center")
    with capture_logs() as logs:
        async with linked(server, state=tmp_path):
            await soon(lambda: server.connections >= 3)
            setattr(server, where, None)
            await server.agent()
    complaints = [log["error"] for log in logs if log["event"] == "link down"]
    assert len(complaints) >= 2
    assert set(complaints) == {"the management server refuses this agent: you have sent incorrect data center"}


async def test_pool_that_cannot_be_connected_refuses_the_host(server: ManagementServer, tmp_path: Path) -> None:
    server.on_connect = [(f"{API}ModifyStoragePoolCommand", POOL | does(fail="answer"))]
    heard = Heard()
    async with linked(server, state=tmp_path, watcher=heard):
        await soon(lambda: server.connections >= 2)
        server.on_connect = []
        await server.agent()
    assert any("it failed" in str(getattr(item, "refusal", "")) for item in heard.received_items)


async def test_introduction_again_on_the_same_connection(authority: Authority, tmp_path: Path) -> None:
    async with ManagementServer(authority, ping_interval=QUICK) as server, linked(server, state=tmp_path) as link:
        agent = await server.agent()
        before = agent.startup
        agent.send_startup = True
        await soon(lambda: agent.startup is not before)
        await soon(lambda: link.status.host_id == agent.host_id)
        assert server.connections == 1


# ------------------------------------------------------------------------------------------------------------- pings


def longest(moments: list[float]) -> float:
    return max(after - before for before, after in itertools.pairwise(moments))


async def test_pings_are_never_late(authority: Authority, tmp_path: Path) -> None:
    """A thousand commands, fifty at once, eight of them long: pings are late by less than a tenth of their interval. What this
    process is late by, whatever it does, is known from a task that only sleeps."""
    ((name, copy),) = tree("CopyCommand-clone")[0].items()
    role = ScriptedRole()
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(QUICK)

    async with (
        ManagementServer(authority, ping_interval=QUICK) as server,
        linked(server, state=tmp_path, role=role),
        asyncio.TaskGroup() as group,
    ):
        ticking = group.create_task(tick())
        agent = await server.agent()
        copies = [asyncio.create_task(agent.ask(name, copy | does(sleep=30))) for _ in range(8)]
        turns = asyncio.Semaphore(42)

        async def one(number: int) -> str:
            async with turns:
                return str((await agent.ask(STATS, does(sleep=0.1, say=number)))[1]["details"])

        answers = await asyncio.gather(*(one(number) for number in range(1000)))
        assert answers == [str(number) for number in range(1000)]
        await soon(lambda: len(agent.pings) >= 3)
        assert role.most_running == 50
        assert not any(copying.done() for copying in copies)
        for copying in copies:
            copying.cancel()
        ticking.cancel()
        late = longest(agent.pings) - max(longest(ticks), QUICK)
        assert late < 0.1 * QUICK
        assert server.violations == []


async def test_silent_server_is_given_up(authority: Authority, tmp_path: Path) -> None:
    async with ManagementServer(authority, ping_interval=QUICK) as server, linked(server, state=tmp_path):
        await server.agent()
        server.silent = True
        await soon(lambda: server.connections >= 2)


async def test_server_that_reads_nothing_is_given_up(authority: Authority, tmp_path: Path) -> None:
    heard = Heard()
    async with (
        ManagementServer(authority, ping_interval=QUICK) as server,
        linked(server, state=tmp_path, watcher=heard),
    ):
        agent = await server.agent()
        server.reads.clear()
        pings = len(agent.pings)
        await soon(lambda: len(agent.pings) > pings)  # one packet more is taken
        asked = asyncio.create_task(agent.ask(STATS, does(say=os.urandom(6 * MiB).hex())))
        await soon(lambda: server.connections >= 2)
        server.reads.set()
        with pytest.raises(Disconnected):
            await asked
        await server.agent(2)
    # Which of the two depends on whether a ping still went out before the answer filled the connection.
    assert "reads nothing" in heard.failures[0].message or "said nothing" in heard.failures[0].message


async def test_requests_beyond_the_limit_wait_at_the_server(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "MOST", 2)
    role = ScriptedRole()
    async with ManagementServer(authority, ping_interval=QUICK) as server, linked(server, state=tmp_path, role=role):
        agent = await server.agent()
        asked = [asyncio.create_task(agent.ask(STATS, does(gate=1, say=number))) for number in range(6)]
        await soon(lambda: len(agent.pings) >= 4)  # longer than a server may be silent
        assert role.running == 2
        role.gate.set()
        answers = await asyncio.gather(*asked)
        assert [fields["details"] for _, fields in answers] == [str(number) for number in range(6)]
        assert role.most_running <= 3
        assert server.connections == 1


async def test_long_answers_do_not_stop_pings(authority: Authority, tmp_path: Path) -> None:
    async with ManagementServer(authority, ping_interval=QUICK) as server, linked(server, state=tmp_path):
        agent = await server.agent()
        text = "x" * (4 * MiB)
        _, fields = await agent.ask(STATS, does(say=text))
        assert fields["details"] == text
        assert len(agent.pings) <= 20
        await soon(lambda: len(agent.pings) >= 2)


# ---------------------------------------------------------------------------------------------------------- requests


async def test_in_sequence_queue_goes_on(server: ManagementServer, tmp_path: Path) -> None:
    async with linked(server, state=tmp_path):
        agent = await server.agent()
        answers = await asyncio.gather(*(agent.ask(STATS, does(say=n), in_sequence=True) for n in range(5)))
        assert [fields["details"] for _, fields in answers] == [str(n) for n in range(5)]
        assert agent.queued == 0
        assert all(packet.flags & IN_SEQUENCE for packet in agent.received[-5:])


async def test_short_commands_overtake_long_ones(server: ManagementServer, tmp_path: Path) -> None:
    role = ScriptedRole()
    async with linked(server, state=tmp_path, role=role):
        agent = await server.agent()
        long = asyncio.create_task(agent.ask(STATS, does(gate=1)))
        assert (await agent.ask(STATS, does(say="quick")))[1]["details"] == "quick"
        assert not long.done()
        role.gate.set()
        await long


@pytest.mark.parametrize("stop", [True, False])
async def test_several_commands_in_one_request(server: ManagementServer, tmp_path: Path, stop: bool) -> None:
    commands = [
        (STATS, does(say="a")),
        (STATS, does(fail="answer")),
        ("com.example.Unknown", {}),
        (STATS, does(say="b")),
    ]
    async with linked(server, state=tmp_path):
        agent = await server.agent()
        answers = await agent.ask_all(commands, stop_on_error=stop)
    told = [(name.rpartition(".")[2], fields["result"], fields.get("details")) for name, fields in answers]
    assert told[:2] == [("GetStorageStatsAnswer", True, "a"), ("GetStorageStatsAnswer", False, "it failed")]
    if stop:
        assert told[2:] == [("Answer", False, "Stopped by previous failure")] * 2
    else:
        unsupported = ("UnsupportedAnswer", False, "Unsupported command issued: com.example.Unknown")
        assert told[2:] == [unsupported, ("GetStorageStatsAnswer", True, "b")]


@pytest.mark.parametrize(("how", "says"), [("known", "there is no such disk"), ("unforeseen", "incident")])
async def test_failure_is_an_answer(server: ManagementServer, tmp_path: Path, how: str, says: str) -> None:
    async with linked(server, state=tmp_path):
        agent = await server.agent()
        name, fields = await agent.ask(STATS, does(fail=how))
    assert name == f"{API}GetStorageStatsAnswer"
    assert fields["result"] is False
    assert says in fields["details"]
    assert "secret detail" not in fields["details"]


async def test_command_that_cannot_be_read_costs_only_itself(server: ManagementServer, tmp_path: Path) -> None:
    async with linked(server, state=tmp_path):
        agent = await server.agent()
        commands = [(f"{STORAGE}.CopyCommand", {"srcTO": 5}), (STATS, does(say="fine"))]
        (name, refused), (_, fine) = await agent.ask_all(commands, stop_on_error=False)
        assert (name, refused["result"]) == (f"{STORAGE}.CopyCmdAnswer", False)
        assert fine["details"] == "fine"
        assert server.connections == 1


async def test_nobody_waits_longer_than_twice(server: ManagementServer, tmp_path: Path) -> None:
    role = ScriptedRole()
    async with linked(server, state=tmp_path, role=role):
        agent = await server.agent()
        _, fields = await agent.ask(STATS, does(sleep=60) | {"wait": 1})
        assert not fields["result"]
        assert "not done within 2 s" in fields["details"]
        assert role.cancelled == 1
        await agent.ask(STATS, {"wait": 0})
    assert role.deadlines[-2:] == [2, 3600]


async def test_cancel(server: ManagementServer, tmp_path: Path) -> None:
    role = ScriptedRole()
    async with linked(server, state=tmp_path, role=role):
        agent = await server.agent()
        waiting = asyncio.create_task(agent.ask(STATS, does(gate=1)))
        await soon(lambda: role.running == 1)
        (sequence,) = agent._waiting
        asked = {"sequence": sequence, "reason": "the user said so"}
        assert (await agent.ask(f"{API}CancelCommand", asked | {"checkOnly": True}))[1]["result"]
        assert role.running == 1
        assert (await agent.ask(f"{API}CancelCommand", asked))[1]["result"]
        assert not (await waiting)[1]["result"]
        assert not (await agent.ask(f"{API}CancelCommand", asked))[1]["result"]
    assert role.cancelled == 1


async def test_answer_that_nobody_waits_for_is_survived(server: ManagementServer, tmp_path: Path) -> None:
    role = ScriptedRole()
    async with linked(server, state=tmp_path, role=role):
        agent = await server.agent()
        waiting = asyncio.create_task(agent.ask(STATS, does(gate=1)))
        await soon(lambda: role.running == 1)
        (sequence,) = agent._waiting
        agent.forget(sequence)
        role.gate.set()
        await soon(lambda: agent.dropped)
        waiting.cancel()
        assert (await agent.ask(STATS, does(say="on")))[1]["details"] == "on"


async def test_message_of_10_mib_comes_back_as_it_was(server: ManagementServer, tmp_path: Path) -> None:
    text = os.urandom(5 * MiB).hex()
    async with linked(server, state=tmp_path):
        agent = await server.agent()
        _, fields = await agent.ask(STATS, does(say=text))
    assert fields["details"] == text
    assert agent.received[-2].compressed


@pytest.mark.parametrize("raw", [b"{}", b"[", b"null", b"[" * 100_000, b"[]x", b"\xff"])
async def test_text_that_is_no_array_of_commands_ends_the_connection(
    server: ManagementServer, tmp_path: Path, raw: bytes
) -> None:
    async with linked(server, state=tmp_path):
        agent = await server.agent()
        await agent.write(Packet(1 << 50, 0x21, [], 1, 1, 1, raw=raw))
        await asyncio.wait_for(agent.gone.wait(), 10)
        await server.agent(2)


# ------------------------------------------------------------------------------------------------------ reconnecting


async def test_comes_back_after_a_lost_connection(server: ManagementServer, tmp_path: Path) -> None:
    role = ScriptedRole()
    async with linked(server, state=tmp_path, role=role):
        agent = await server.agent()
        lost = asyncio.create_task(agent.ask(STATS, does(gate=1)))
        await soon(lambda: role.running == 1)
        agent.leave("cable cut")
        with pytest.raises(Disconnected):
            await lost
        again = await server.agent(2)
        assert again.host_id == agent.host_id
        assert role.running == 1  # goes on: the server may have acted on it
        role.gate.set()
        await soon(lambda: role.running == 0)
        assert (await again.ask(STATS, does(say="back")))[1]["details"] == "back"
        assert again.dropped == []


async def test_nothing_is_left_of_lost_connections(authority: Authority, tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    async with ManagementServer(authority) as server, linked(server, state=tmp_path):
        for number in range(5):
            agent = await server.agent(number + 1)
            agent.leave("cable cut")
        await server.agent(6)
    await soon(lambda: set(os.listdir("/proc/self/fd")) <= before)


async def test_overloaded_server_is_tried_again(server: ManagementServer, tmp_path: Path) -> None:
    server.overloaded = True
    async with linked(server, state=tmp_path):
        await soon(lambda: server.connections >= 3)
        server.overloaded = False
        await server.agent()


async def test_next_server_when_one_is_away(server: ManagementServer, tmp_path: Path, unused_port: int) -> None:
    async with linked(f"127.0.0.1:{unused_port}", server, state=tmp_path):
        await server.agent()


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def test_role_that_fails_costs_one_connection(server: ManagementServer, tmp_path: Path) -> None:
    class Clumsy(ScriptedRole):
        def introduction(self, local_address: str) -> Sequence[StartupCommand]:
            if server.connections < 2:
                raise ZeroDivisionError("secret detail")
            return super().introduction(local_address)

    heard = Heard()
    async with linked(server, state=tmp_path, role=Clumsy(), watcher=heard):
        await server.agent()
    assert [failure.kind for failure in heard.failures] == ["Internal"]
    assert "secret detail" not in heard.failures[0].message


async def test_stranger_hears_nothing(server: ManagementServer, tmp_path: Path) -> None:
    settings = LinkSettings(pins=(Authority().certificate,), retry_first_s=0.05, retry_most_s=0.1)
    async with linked(server, state=tmp_path, settings=settings):
        await soon(lambda: server.connections >= 3)
    assert server.agents == []
    assert server.discarded == []


async def test_put_away(server: ManagementServer, tmp_path: Path) -> None:
    role = ScriptedRole()
    async with linked(server, state=tmp_path, role=role) as link:
        agent = await server.agent()
        running = asyncio.create_task(agent.ask(STATS, does(gate=1)))
        await soon(lambda: role.running == 1)
        _, fields = await agent.ask(f"{API}ShutdownCommand", {"reason": "deleteHost"})
        assert fields["result"]
        await asyncio.wait_for(agent.gone.wait(), 5)
        await soon(lambda: link.status.phase is None)
        with pytest.raises(Disconnected):
            await running
        assert role.running == 1  # goes on
        role.gate.set()
        await soon(lambda: role.running == 0)
    assert role.cancelled == 0
    assert server.connections == 1


async def test_maintenance_cancels_nothing(server: ManagementServer, tmp_path: Path) -> None:
    role = ScriptedRole()
    async with linked(server, state=tmp_path, role=role):
        agent = await server.agent()
        running = asyncio.create_task(agent.ask(STATS, does(gate=1)))
        name, fields = await agent.ask(f"{API}MaintainCommand")
        assert (name, fields["result"], fields["willMigrate"]) == (f"{API}MaintainAnswer", True, True)
        role.gate.set()
        assert (await running)[1]["result"]


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("ConsoleAccessAuthenticationCommand", "AgentControlAnswer"),
        ("ConsoleProxyLoadReportCommand", "AgentControlAnswer"),
        ("CleanupNetworkRulesCmd", "Answer"),
    ],
)
async def test_commands_for_what_this_agent_has_not_are_answered_with_success(
    server: ManagementServer, tmp_path: Path, command: str, answer: str
) -> None:
    async with linked(server, state=tmp_path):
        agent = await server.agent()
        name, fields = await agent.ask(f"{API}{command}", {"interval": 1})
        assert (name, fields["result"]) == (f"{API}{answer}", True)


# --------------------------------------------------------------------------------------------- several servers


async def two(authority: Authority) -> tuple[ManagementServer, ManagementServer]:
    return ManagementServer(authority), ManagementServer(authority)


async def test_moves_where_it_is_told(authority: Authority, tmp_path: Path) -> None:
    first, second = await two(authority)
    async with first, second, linked(first, state=tmp_path):
        agent = await first.agent()
        order = {"msList": [first.address, second.address], "avoidMsList": [first.address], "lbCheckInterval": 0}
        name, fields = await agent.ask(f"{API}MigrateAgentConnectionCommand", order)
        assert (name, fields["result"]) == (f"{API}MigrateAgentConnectionAnswer", True)
        moved = await second.agent()
        assert moved.transferred
        assert agent.gone.is_set()
        moved.leave("lost")
        again = await second.agent(2)
        assert not again.transferred
    assert first.connections == 1


async def test_stays_where_nobody_can_be_reached(server: ManagementServer, tmp_path: Path, unused_port: int) -> None:
    async with linked(server, state=tmp_path):
        agent = await server.agent()
        await agent.ask(f"{API}MigrateAgentConnectionCommand", {"msList": [f"127.0.0.1:{unused_port}"]})
        await asyncio.sleep(0.2)
        assert (await agent.ask(STATS, does(say="here")))[1]["details"] == "here"


async def test_goes_back_to_the_preferred_server_when_idle(authority: Authority, tmp_path: Path) -> None:
    first, second = await two(authority)
    role = ScriptedRole()
    async with first, second, linked(first, state=tmp_path, role=role):
        agent = await first.agent()
        running = asyncio.create_task(agent.ask(STATS, does(gate=1)))
        order = {"msList": [second.address, first.address], "lbAlgorithm": "static", "lbCheckInterval": 1}
        assert (await agent.ask(f"{LB}.SetupMSListCommand", order))[1]["result"]
        await asyncio.sleep(1.3)
        assert not agent.gone.is_set()  # something runs
        role.gate.set()
        await running
        moved = await second.agent()
        assert not moved.transferred
        assert moved.startup[0][1]["msHostList"] == "127.0.0.1,127.0.0.1@static"


async def test_list_comes_with_ready(authority: Authority, tmp_path: Path) -> None:
    first, second = await two(authority)
    async with first, second, linked(first, state=tmp_path):
        first.ready = {"msHostList": [first.address, second.address], "lbAlgorithm": "static", "lbCheckInterval": 60}
        agent = await first.agent()
        first.overloaded = True
        agent.leave("lost")
        await second.agent()


# ------------------------------------------------------------------------------------------------------ certificates


async def test_certificate_is_provisioned(authority: Authority, tmp_path: Path) -> None:
    context = authority.server_context()
    async with ManagementServer(authority, context=context) as server, linked(server, state=tmp_path):
        agent = await server.agent()
        name, asked = await agent.ask(f"{CA}.SetupKeyStoreCommand", {"keystorePassword": "x", "handleByAgent": True})
        assert name == f"{CA}.SetupKeystoreAnswer"
        signed = authority.sign(asked["csr"].encode())
        body = {
            "certificate": signed.decode(),
            "privateKey": "",
            "caCertificates": authority.pem.decode(),
            "handleByAgent": True,
        }
        name, answer = await agent.ask(f"{CA}.SetupCertificateCommand", body)
        assert (name, answer["result"]) == (f"{CA}.SetupCertificateAnswer", True)
        await server.agent(2)
        assert agent.reason == "shutdown: requested"
        shown = server.clients[-1]
        assert shown is not None
        assert x509.load_der_x509_certificate(shown) == x509.load_pem_x509_certificate(signed)
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert files == {"identity.pem": 0o600, "authority.pem": 0o600, "host-id": 0o600}


async def test_certificate_for_another_key_is_refused(server: ManagementServer, tmp_path: Path) -> None:
    async with linked(server, state=tmp_path):
        agent = await server.agent()
        await agent.ask(f"{CA}.SetupKeyStoreCommand", {"handleByAgent": True})
        other, _ = server.authority.issue("other")
        body = {"certificate": other.decode(), "caCertificates": server.authority.pem.decode(), "handleByAgent": True}
        _, answer = await agent.ask(f"{CA}.SetupCertificateCommand", body)
        assert not answer["result"]
        assert "another key" in answer["details"]
        assert server.connections == 1
    assert not (tmp_path / "identity.pem").exists()


async def test_certificate_of_a_router_is_not_ours(server: ManagementServer, tmp_path: Path) -> None:
    async with linked(server, state=tmp_path):
        agent = await server.agent()
        name, _ = await agent.ask(f"{CA}.SetupKeyStoreCommand", {"handleByAgent": False})
        assert name == f"{API}UnsupportedAnswer"


async def test_configured_identity_is_shown(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("kvm7")
    file = tmp_path / "agent.pem"
    file.write_bytes(key + certificate)
    settings = LinkSettings(pins=(authority.certificate,), identity=Identity(file, file))
    async with (
        ManagementServer(authority, context=authority.server_context(need_client=True)) as server,
        linked(server, state=tmp_path / "state", settings=settings),
    ):
        agent: AttachedAgent = await server.agent()
        assert agent.up.is_set()


async def test_server_that_wants_a_certificate(authority: Authority, tmp_path: Path) -> None:
    heard = Heard()
    context = authority.server_context(need_client=True)
    async with (
        ManagementServer(authority, context=context) as server,
        linked(server, state=tmp_path, watcher=heard),
    ):
        await soon(lambda: heard.failures)
    assert heard.failures[0].kind == "TlsFailed"
    assert "may want a certificate" in heard.failures[0].message
    assert server.agents == []
