"""The HTTP API over real sockets, on a real dispatcher and journal: what clients see, may do, and leave behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from openapi_spec_validator import validate

from agent.commands import Answer, Event, Failure, Outcome, State
from agent.config import Config
from agent.dispatcher import Dispatcher, Limits
from agent.explain import Explainable
from agent.journal import Journal
from agent.metrics import Metrics
from agent.security import Role, SecuritySetup
from agent.transports.contract import AgentStatus
from agent.transports.http_api.problems import status_of
from agent.transports.http_api.route import Api
from agent.transports.http_api.routes import ROUTES
from agent.transports.http_api.server import HttpApi
from hypervisors.explaining import Explanation, How, Side
from stores.contract import Kind
from stores.errors import NoSpace
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


# ----------------------------------------------------------------------------------------------------- commands


async def test_a_command_is_accepted_followed_and_answered(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        async with a.client.post("http://agent/v1/commands", json=delete("c-1")) as response:
            assert response.status == 202
            assert response.headers["Location"] == "/v1/commands/c-1"
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["Server"] == "storage-agent"
            assert outcome(await response.json()) == ("accepted", False)
        run = await a.started("c-1")
        run.progress.phase("removing", 100)
        run.progress.advance(40)
        status, answer = await a.json("GET", "/v1/commands/c-1")
        assert (status, answer["state"]) == (200, "running")
        assert (answer["progress"]["phase"], answer["progress"]["bytes"], answer["progress"]["total"]) == (
            "removing",
            40,
            100,
        )
        run.end.set_result(Outcome(durability="stored"))
        await a.dispatcher.wait("c-1", 20)
        status, answer = await a.json("GET", "/v1/commands/c-1")
        assert (status, outcome(answer), answer["durability"]) == (200, ("succeeded", True), "stored")
        again, repeated = await a.json("POST", "/v1/commands", json=delete("c-1"))
        assert (again, repeated) == (202, answer)
        assert a.work.started == ["c-1"]


async def test_waiting_gives_the_outcome_and_its_status(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:

        async def end(command_id: str, result: Outcome | Exception) -> None:
            future = (await a.started(command_id)).end
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        async with asyncio.TaskGroup() as group:
            good = group.create_task(a.json("POST", "/v1/commands?wait=30", json=delete("good")))
            full = group.create_task(a.json("POST", "/v1/commands?wait=30", json=delete("full")))
            group.create_task(end("good", Outcome()))
            group.create_task(end("full", NoSpace("needs 2, has 1", needed=2, available=1)))
        assert good.result()[0] == 200
        assert outcome(good.result()[1]) == ("succeeded", True)
        status, answer = full.result()
        assert (status, outcome(answer)) == (507, ("failed", False))
        assert answer["error"] == {
            "kind": "NoSpace",
            "retryable": "operator",
            "message": "needs 2, has 1",
            "details": {"needed": 2, "available": 1},
        }
        again = await a.json("POST", "/v1/commands?wait=30", json=delete("full"))
        assert again == (507, answer)
        status, answer = await a.json("POST", "/v1/commands?wait=0.01", json=delete("slow"))
        assert (status, answer["state"]) in ((202, "running"), (202, "accepted"))
        await end("slow", Outcome())


async def test_a_client_that_goes_away_while_it_waits_leaves_the_command_alone(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        waiting = asyncio.create_task(a.json("POST", "/v1/commands?wait=30", json=delete("c-1")))
        run = await a.started("c-1")
        waiting.cancel()
        await asyncio.wait([waiting])
        run.end.set_result(Outcome())
        assert (await a.dispatcher.wait("c-1", 20)).state is State.SUCCEEDED


async def test_cancelling_answers_when_nothing_is_left(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        await a.json("POST", "/v1/commands", json=delete("c-1"))
        await a.started("c-1")
        status, answer = await a.json("DELETE", "/v1/commands/c-1")
        assert (status, answer["state"], answer["error"]["kind"]) == (200, "cancelled", "Cancelled")
        assert a.work.undone == ["c-1"]
        assert await a.json("DELETE", "/v1/commands/c-1") == (200, answer)


async def test_listing(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        for name in ("a", "b", "c"):
            await a.json("POST", "/v1/commands", json=delete(name))
            await a.started(name)
        a.work.runs["a"].end.set_result(Outcome())
        await a.dispatcher.wait("a", 20)

        async def ids(query: str) -> list[str]:
            status, answer = await a.json("GET", f"/v1/commands{query}")
            assert status == 200
            return [command["id"] for command in answer["commands"]]

        assert await ids("") == ["c", "b", "a"]
        assert await ids("?limit=1") == ["c"]
        assert await ids("?state=succeeded") == ["a"]
        assert await ids("?state=failed") == []


async def test_explaining_runs_nothing(tmp_path: Path) -> None:
    volume = {"type": "volume", "path": "v", "dataStore": POOL}
    async with agent(tmp_path) as a:
        body = {"command": "Copy", "source": volume, "destination": volume}
        status, answer = await a.json("POST", "/v1/explain", json=body)
        assert (status, answer["how"], answer["source"]["chosen"]) == (200, "in place", "RangeReader")
        status, answer = await a.json("POST", "/v1/explain", json=delete())
        assert (status, answer["error"]["kind"]) == (422, "InvalidCommand")
        assert a.work.started == []


# ------------------------------------------------------------------------------------------------------- events


async def events_of(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Server-sent events, comments included as ("", ...)."""
    name = ""
    async for raw in response.content:
        field, _, value = raw.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)
        elif field == "" and value:
            yield "", {"comment": value}


async def test_events_tell_progress_and_end_with_the_answer(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        await a.json("POST", "/v1/commands", json=delete("c-1"))
        run = await a.started("c-1")
        seen = []
        async with a.client.get(
            "http://agent/v1/commands/c-1/events", headers={"Last-Event-ID": "no such \u00e9vent"}
        ) as response:
            assert response.content_type == "text/event-stream"
            async for name, event in events_of(response):
                seen.append((name, event))
                if name == "progress" and event.get("progress") is None:
                    run.progress.phase("removing", 100)
                    run.progress.advance(40)
                elif name == "progress" and event["progress"]["bytes"] == 40 and not run.end.done():
                    run.end.set_result(Outcome())
        assert [name for name, _ in seen][-1] == "end"
        assert Answer.model_validate(seen[-1][1]) == await a.dispatcher.get("c-1")
        assert all(Event.model_validate(event) for name, event in seen if name == "progress")
        assert {"phase": "removing", "bytes": 40, "total": 100}.items() <= seen[-2][1]["progress"].items()
        async with a.client.get("http://agent/v1/commands/c-1/events") as late:
            assert [name async for name, _ in events_of(late)] == ["end"]


async def test_silence_is_filled_with_heartbeats(tmp_path: Path) -> None:
    async with agent(tmp_path, heartbeat_s=0.02) as a:
        await a.json("POST", "/v1/commands", json=delete("c-1"))
        await a.started("c-1")
        async with a.client.get("http://agent/v1/commands/c-1/events") as response:
            beats = 0
            async for name, event in events_of(response):
                beats += (name, event) == ("", {"comment": "alive"})
                if beats == 3:
                    break
            assert beats == 3


async def test_events_of_no_command_are_a_plain_404(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        status, answer = await a.json("GET", "/v1/commands/none/events")
        assert (status, answer["error"]["kind"], answer["error"]["retryable"]) == (404, "UnknownCommand", "no")


async def test_stopping_ends_streams_and_waits_and_takes_nobody_new(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        await a.json("POST", "/v1/commands", json=delete("c-1"))
        waiting = asyncio.create_task(a.json("POST", "/v1/commands?wait=60", json=delete("c-1")))
        run = await a.started("c-1")
        async with a.client.get("http://agent/v1/commands/c-1/events") as response:
            stream = events_of(response)
            await anext(stream)
            async with asyncio.timeout(10):
                await a.api.stop()
                assert [name async for name, _ in stream if name == "end"] == []
                status, answer = await waiting
        assert (status, answer["state"]) == (202, "running")
        assert not a.socket.exists()
        with pytest.raises(aiohttp.ClientConnectionError):
            await a.json("GET", "/v1/status")
        run.end.set_result(Outcome())
        assert (await a.dispatcher.wait("c-1", 20)).result


async def test_a_client_that_goes_away_ends_its_stream(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        await a.json("POST", "/v1/commands", json=delete("c-1"))
        await a.started("c-1")
        response = await a.client.get("http://agent/v1/commands/c-1/events")
        await anext(events_of(response))
        response.close()
        gauge = "storage_agent_http_event_streams"
        async with asyncio.timeout(10):
            while a.metrics.registry.get_sample_value(gauge) != 0:
                await asyncio.sleep(0.01)


# ----------------------------------------------------------------------------------------------- refused requests


@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        (("POST", "/v1/commands", b"{", {}), 422, "InvalidCommand"),
        (("POST", "/v1/commands", b"[" * 5000, {}), 422, "InvalidCommand"),
        (("POST", "/v1/commands", b'{"command": "Reboot"}', {}), 422, "InvalidCommand"),
        (("POST", "/v1/commands", b"\xff\xfe", {}), 422, "InvalidCommand"),
        (("POST", "/v1/commands", b"{}", {"Content-Type": "text/plain"}), 415, "UnsupportedMediaType"),
        (("POST", "/v1/commands", b"{}", {"Content-Encoding": "gzip"}), 415, "UnsupportedMediaType"),
        (("POST", "/v1/commands?wait=soon", b"{}", {}), 400, "BadRequest"),
        (("POST", "/v1/commands?wait=nan", b"{}", {}), 400, "BadRequest"),
        (("POST", "/v1/commands?wait=-1", b"{}", {}), 400, "BadRequest"),
        (("POST", "/v1/commands", b" " * 70_000, {}), 413, "BodyTooLarge"),
        (("GET", "/v1/commands?limit=0", None, {}), 400, "BadRequest"),
        (("GET", "/v1/commands?limit=1001", None, {}), 400, "BadRequest"),
        (("GET", "/v1/commands?state=odd", None, {}), 400, "BadRequest"),
        (("GET", "/v1/commands/none", None, {}), 404, "UnknownCommand"),
        (("DELETE", "/v1/commands/none", None, {}), 404, "UnknownCommand"),
        (("GET", "/v2/commands", None, {}), 404, "NoSuchRoute"),
        (("PUT", "/v1/commands", b"{}", {}), 405, "MethodNotAllowed"),
    ],
)
async def test_a_bad_request_is_told_what_is_wrong_with_it(
    tmp_path: Path, request_: tuple[str, str, bytes | None, dict[str, str]], status: int, kind: str
) -> None:
    method, path, body, headers = request_
    async with agent(tmp_path, max_body=65536) as a:
        seen, answer = await a.json(method, path, data=body, headers={"Content-Type": "application/json", **headers})
        assert (seen, answer["error"]["kind"], answer["error"]["retryable"]) == (status, kind, "no")
        assert set(answer["error"]) == {"kind", "retryable", "message", "details"}
        assert await a.dispatcher.list() == []


async def test_validation_names_the_place_and_repeats_no_value(tmp_path: Path) -> None:
    command = delete("c-1")
    command["data"]["size"] = "planted-value"
    command["data"]["dataStore"] = {"storeType": "s3", "bucketName": "b", "secretKey": 7}
    async with agent(tmp_path) as a:
        status, answer = await a.json("POST", "/v1/commands", json=command)
        assert (status, answer["error"]["kind"]) == (422, "InvalidCommand")
        places = {problem["at"] for problem in answer["error"]["details"]["problems"]}
        assert any(place.endswith("size") for place in places)
        assert any("secretKey" in place for place in places)
        assert "planted-value" not in json.dumps(answer)


async def test_the_same_id_with_other_content_is_a_conflict(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        await a.json("POST", "/v1/commands", json=delete("c-1"))
        status, answer = await a.json("POST", "/v1/commands", json=delete("c-1", path="other"))
        assert (status, answer["error"]["kind"]) == (409, "IdReused")


async def test_a_full_queue_can_be_tried_again(tmp_path: Path) -> None:
    async with agent(tmp_path, limits=Limits(queue=1)) as a:
        await a.json("POST", "/v1/commands", json=delete("c-1"))
        status, answer = await a.json("POST", "/v1/commands", json=delete("c-2"))
        assert (status, answer["error"]["kind"], answer["error"]["retryable"]) == (503, "Overloaded", "yes")


async def test_every_kind_of_failure_has_a_status() -> None:
    assert status_of(Failure(kind="NoSpace", retryable="operator", message="")) == 507
    assert status_of(Failure(kind="ImageRefused", retryable="no", message="")) == 422
    assert status_of(Failure(kind="OfALaterVersion", retryable="no", message="")) == 500


# ------------------------------------------------------------------------------------------------ time and numbers


async def raw(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(str(path))


async def healthy(path: Path) -> bool:
    """Whether a new connection is served."""
    reader, writer = await raw(path)
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        return (await reader.read()).startswith(b"HTTP/1.1 200 ")
    except ConnectionError:
        return False
    finally:
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: a", b"\r\n"])
async def test_a_slow_or_idle_connection_is_closed(tmp_path: Path, sent: bytes) -> None:
    async with agent(tmp_path, request_timeout_s=0.2) as a:
        reader, writer = await raw(a.socket)
        writer.write(sent)
        async with asyncio.timeout(10):
            await reader.read()
        writer.close()
        assert (await a.json("GET", "/v1/status"))[0] == 200


async def test_a_slow_body_is_told_so_and_cut(tmp_path: Path) -> None:
    async with agent(tmp_path, request_timeout_s=0.2) as a:
        reader, writer = await raw(a.socket)
        writer.write(
            b"POST /v1/commands HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        )
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"kind":"RequestTimeout"' in answer


async def test_connections_beyond_the_limit_are_hung_up_on(tmp_path: Path) -> None:
    async with agent(tmp_path, max_connections=3) as a:
        held = [await raw(a.socket) for _ in range(3)]
        await asyncio.sleep(0.05)
        reader, writer = await raw(a.socket)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        for _, open_writer in [*held, (reader, writer)]:
            open_writer.close()
        async with asyncio.timeout(10):
            while not await healthy(a.socket):
                await asyncio.sleep(0.01)


# ---------------------------------------------------------------------------------------------------- operations


async def test_health_readiness_and_status(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        async with a.client.get("http://agent/healthz") as alive, a.client.get("http://agent/readyz") as ready:
            assert (alive.status, ready.status, await ready.text()) == (200, 200, "ok\n")
        status, answer = await a.json("GET", "/v1/status")
        assert status == 200
        assert (answer["ready"], answer["running"], answer["waiting"], answer["hypervisor"]) == (True, 0, 0, "KVM")
        await a.dispatcher.shut_down(0)
        async with a.client.get("http://agent/healthz") as alive:
            assert alive.status == 200
        status, answer = await a.json("GET", "/readyz")
        assert (status, answer["error"]["kind"], answer["error"]["details"]["accepting"]) == (503, "Stopping", False)


async def test_metrics_know_routes_and_no_paths(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        await a.json("POST", "/v1/commands", json=delete("planted-id"))
        await a.json("GET", "/v1/commands/planted-id")
        await a.json("GET", "/planted-path")
        async with a.client.get("http://agent/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            text = await response.text()
        assert 'storage_agent_http_requests_total{method="GET",route="/v1/commands/{id}",status="200"} 1.0' in text
        assert "planted" not in text


async def test_the_description_is_valid_and_describes_what_is_served(tmp_path: Path) -> None:
    async with agent(tmp_path) as a:
        status, document = await a.json("GET", "/openapi.json")
        assert status == 200
        validate(document)
        described = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
        assert described == {(route.method, route.path) for route in ROUTES}
        for method, path in described - {("GET", "/metrics"), ("GET", "/healthz"), ("GET", "/readyz")}:
            _, answer = await a.json(method, re.sub(r"{\w+}", "none", path))
            assert answer.get("error", {}).get("kind") not in ("NoSuchRoute", "MethodNotAllowed"), path
        schemas = document["components"]["schemas"]
        assert {"Copy", "Delete", "TemplateObjectTO", "S3TO", "Answer", "Failure"} <= schemas.keys()
        assert schemas["S3TO"]["properties"]["secretKey"]["anyOf"][0]["format"] == "password"
        assert document["paths"]["/v1/commands/{id}"]["get"]["parameters"][0]["name"] == "id"


# -------------------------------------------------------------------------------------------------- who may do what


def test_each_route_needs_the_role_it_should() -> None:
    needed = {(route.method, route.path): route.role for route in ROUTES}
    commanding = {route for route, role in needed.items() if role is Role.COMMAND}
    operating = {route for route, role in needed.items() if role is Role.OPERATE}
    assert commanding == {("POST", "/v1/commands"), ("POST", "/v1/events/{id}/ack")}
    assert operating == {
        ("DELETE", "/v1/commands/{id}"),
        ("DELETE", "/v1/cache/entries/{key}"),
        ("PUT", "/v1/cache/entries/{key}/pin"),
        ("DELETE", "/v1/cache/entries/{key}/pin"),
        ("POST", "/v1/uploads/{id}/retry"),
        ("POST", "/v1/uploads/retry"),
        ("DELETE", "/v1/uploads/{id}"),
        ("POST", "/v1/drain"),
        ("DELETE", "/v1/drain"),
    }


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@dataclass
class Certificates:
    directory: Path
    authority: trustme.CA

    def settings(self, **roles: str) -> dict[str, Any]:
        server = self.authority.issue_cert("127.0.0.1")
        self.authority.cert_pem.write_to_path(str(self.directory / "ca.pem"))
        server.private_key_pem.write_to_path(str(self.directory / "key.pem"))
        for pem in server.cert_chain_pems:
            pem.write_to_path(str(self.directory / "cert.pem"), append=True)
        return {
            "tcp_listen": "127.0.0.1:0",
            "tls_cert": str(self.directory / "cert.pem"),
            "tls_key": str(self.directory / "key.pem"),
            "tls_client_ca": str(self.directory / "ca.pem"),
            "tls_roles": roles,
        }

    def client(self, certificate: trustme.LeafCert | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.directory / "ca.pem"))
        if certificate is not None:
            certificate.configure_cert(context)
        return context


async def over_tcp(a: Agent, tls: ssl.SSLContext, method: str, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
    port = next(address.rsplit(":", 1)[1] for address in a.api.addresses if address.startswith("127."))
    connector = aiohttp.TCPConnector(ssl=tls, force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector) as client,
        client.request(method, f"https://127.0.0.1:{port}{path}", **options) as response,
    ):
        return response.status, await response.json()


async def test_certificates_have_roles(tmp_path: Path, authority: trustme.CA) -> None:
    certificates = Certificates(tmp_path, authority)
    roles = {"DNS:manager.example": "command", "DNS:desk.example": "operate", "CN=monitor": "view"}
    async with agent(tmp_path, **certificates.settings(**roles)) as a:
        manager = certificates.client(authority.issue_cert("manager.example"))
        desk = certificates.client(authority.issue_cert("desk.example"))
        monitor = certificates.client(authority.issue_cert("other.example", common_name="monitor"))
        nobody = certificates.client(authority.issue_cert("nobody.example"))

        async def statuses(tls: ssl.SSLContext) -> list[int]:
            return [
                (await over_tcp(a, tls, *request))[0]
                for request in (("GET", "/v1/status"), ("DELETE", "/v1/commands/none"))
            ] + [(await over_tcp(a, tls, "POST", "/v1/commands", json={}))[0]]

        assert await statuses(manager) == [200, 404, 422]
        assert await statuses(desk) == [200, 404, 403]
        assert await statuses(monitor) == [200, 403, 403]
        assert await statuses(nobody) == [403, 403, 403]
        status, answer = await over_tcp(a, monitor, "POST", "/v1/commands", json=delete())
        assert (status, answer["error"]["kind"]) == (403, "Forbidden")
        assert answer["error"]["details"] == {"needed": "command", "role": "view"}
        assert await a.dispatcher.list() == []


async def test_tls_without_a_known_certificate_gets_no_http(tmp_path: Path, authority: trustme.CA) -> None:
    certificates = Certificates(tmp_path, authority)
    async with agent(tmp_path, **certificates.settings(**{"DNS:manager.example": "command"})) as a:
        stranger = trustme.CA().issue_cert("manager.example")
        for certificate in (None, stranger):
            with pytest.raises(aiohttp.ClientError):
                await over_tcp(a, certificates.client(certificate), "GET", "/v1/status")
        old = certificates.client(authority.issue_cert("manager.example"))
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert (await over_tcp(a, old, "GET", "/v1/status"))[0] == 200


async def test_plain_http_on_the_tcp_port_gets_nothing(tmp_path: Path, authority: trustme.CA) -> None:
    certificates = Certificates(tmp_path, authority)
    async with agent(tmp_path, **certificates.settings()) as a:
        port = next(address.rsplit(":", 1)[1] for address in a.api.addresses if address.startswith("127."))
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(10):
            assert b"HTTP" not in await reader.read()
        writer.close()


# ------------------------------------------------------------------------------------------------------- listeners


async def test_a_socket_from_systemd_is_used_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "passed.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        config = Config.model_validate({"api": {"socket": str(tmp_path / "own.sock")}})
        metrics = Metrics()
        async with Journal(tmp_path / "state") as journal, Dispatcher(journal, HeldExecutor()) as dispatcher:
            served = http_api(dispatcher, config, metrics, passed=[listener.dup()])
            await served.start()
            assert served.addresses == [str(path)]
            async with (
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client,
                client.get("http://agent/healthz") as response,
            ):
                assert response.status == 200
            await served.stop()
    assert path.exists()
    assert not (tmp_path / "own.sock").exists()


async def test_a_tcp_socket_from_systemd_without_certificates_is_refused(tmp_path: Path) -> None:
    config = Config.model_validate({"api": {"socket": str(tmp_path / "own.sock")}})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with Journal(tmp_path / "state") as journal, Dispatcher(journal, HeldExecutor()) as dispatcher:
            served = http_api(dispatcher, config, Metrics(), passed=[listener])
            with pytest.raises(SecuritySetup, match="mutual TLS"):
                await served.start()
    assert not (tmp_path / "own.sock").exists()


async def test_a_second_agent_does_not_take_the_socket_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with agent(tmp_path) as a:
        with pytest.raises(SecuritySetup, match="in use by another process"):
            async with agent(tmp_path / "other", socket=str(a.socket)):
                pass
        assert (await a.json("GET", "/v1/status"))[0] == 200
