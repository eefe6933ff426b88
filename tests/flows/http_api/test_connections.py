"""The HTTP API over real sockets: streams of events, slow clients and many, and the listeners."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.commands import Answer, Event, Outcome
from agent.config import Config
from agent.dispatcher import Dispatcher
from agent.journal import Journal
from agent.metrics import Metrics
from agent.security import SecuritySetup
from tests.doubles.executor import HeldExecutor
from tests.flows.http_api.place import agent, delete, http_api

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
