"""Subcommands that talk to CloudStack's management servers themselves, without the agent: is there one, would it take this host
in, and what does it say. They run nothing: every command they are sent is answered as refused."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from agent import logs
from agent.cli_exit import Exit, fail, reporting, say
from agent.commands import Answer, Command, Failure
from agent.config import Config, LogLevel
from agent.config_load import load
from agent.failures import Stopping
from agent.transports.cloudstack.contract import Watcher
from agent.transports.cloudstack.json_codec import Decoded
from agent.transports.cloudstack.link import Link
from agent.transports.cloudstack.models_session import ReadyCommand
from agent.transports.cloudstack.servers import parse_server
from agent.transports.cloudstack.tls import Trust, check_server, client_context, connect
from agent.transports.cloudstack.trace import masked
from agent.transports.cloudstack.transport import link_settings, make_links
from agent.transports.cloudstack.wire import Message
from agent.wiring import cloudstack_roles
from stores.errors import StorageError


def ping(config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        settings = _configured(config, as_json)
        found = asyncio.run(_ping(settings))
        if as_json:
            print(json.dumps({"servers": found}))
        else:
            for server in found:
                _show_ping(server)
        if not any(server["ok"] for server in found):
            raise SystemExit(Exit.RETRY)


def login_check(role: str | None, timeout: float, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        settings = _configured(config, as_json, role)
        host_id = asyncio.run(_login(settings, timeout, as_json))
        print(json.dumps({"ok": True, "hostId": host_id}) if as_json else "ok: the server takes this agent in")


def trace(role: str | None, seconds: float | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        asyncio.run(_trace(_configured(config, as_json, role), seconds, as_json))


def _configured(file: Path | None, as_json: bool, role: str | None = None) -> Config:
    config = load(file).config
    section = config.cloudstack
    if not section.servers:
        message = "no management server is configured: set cloudstack.servers"
        fail({"kind": "Usage", "retryable": "no", "message": message, "details": {}}, as_json, Exit.USAGE)
    wanted = role or section.roles[0]
    if wanted not in section.roles:
        message = f"{wanted} is none of cloudstack.roles, which are {', '.join(section.roles)}"
        fail({"kind": "Usage", "retryable": "no", "message": message, "details": {}}, as_json, Exit.USAGE)
    return config.model_copy(update={"cloudstack": section.model_copy(update={"roles": (wanted,)})})


# -------------------------------------------------------------------------------------------------------------- ping


async def _ping(config: Config) -> list[dict[str, Any]]:
    return [await _ping_one(config, server) for server in config.cloudstack.servers]


async def _ping_one(config: Config, address: str) -> dict[str, Any]:
    """TLS, and who is there; nothing is said after that."""
    section, settings = config.cloudstack, link_settings(config.cloudstack)
    server, now = parse_server(address, section.port), datetime.datetime.now(datetime.UTC)
    trust = Trust(settings.pins, unverified=settings.unverified and not settings.pins)
    began = time.monotonic()
    told: dict[str, Any] = {"server": str(server), "ok": False}
    try:
        channel = await connect(
            server.host,
            server.port,
            context=client_context(settings.identity),
            trust=Trust(unverified=True),
            timeout=section.connect_s,
            now=now,
        )
    except StorageError as error:
        return told | {"error": error.message}
    told |= {"ms": round(1000 * (time.monotonic() - began), 1)}
    try:
        certificate = channel.peer
        told |= {
            "certificate": certificate.subject.rfc4514_string(),
            "expires": certificate.not_valid_after_utc.isoformat(),
        }
        check_server(certificate, trust, now)
    except StorageError as error:
        return told | {"error": error.message}
    finally:
        await channel.close()
    return told | {"ok": True}


def _show_ping(server: dict[str, Any]) -> None:
    if server["ok"]:
        say(f"{server['server']}: {server['certificate']}, valid to {server['expires']}, {server['ms']} ms")
    else:
        say(f"{server['server']}: {server['error']}")


# ---------------------------------------------------------------------------------------------- login-check, trace


class _RunsNothing:
    """In the place of the dispatcher."""

    async def submit(self, command: Command) -> Answer:
        raise Stopping("only somebody who looks is on this link: nothing is run")

    async def get(self, command_id: str) -> Answer:
        raise Stopping("only somebody who looks is on this link: nothing was run")

    async def wait(self, command_id: str, seconds: float) -> Answer:
        raise Stopping("only somebody who looks is on this link: nothing is run")

    async def cancel(self, command_id: str) -> Answer:
        raise Stopping("only somebody who looks is on this link: nothing is run")


class _Verdict:
    """Taken in, from the moment that the server asks something: it asks only such hosts. Or why not."""

    def __init__(self) -> None:
        self.failure: Failure | None = None
        self.known = asyncio.Event()

    def sent(self, message: Message, items: Sequence[Decoded]) -> None:
        return

    def received(self, message: Message, items: Sequence[Decoded]) -> None:
        refused = any(isinstance(item, ReadyCommand) and item.refusal for item in items)
        if message.is_request and not refused:
            self.known.set()

    def up(self) -> None:
        self.known.set()

    def down(self, failure: Failure | None) -> None:
        if not self.known.is_set():
            self.failure = failure
            self.known.set()


class _Printer:
    """One line for each message."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def sent(self, message: Message, items: Sequence[Decoded]) -> None:
        self._print("->", message, items)

    def received(self, message: Message, items: Sequence[Decoded]) -> None:
        self._print("<-", message, items)

    def up(self) -> None:
        say("taken in", error=True)

    def down(self, failure: Failure | None) -> None:
        say(f"link down: {failure.message if failure is not None else 'as ordered'}", error=True)

    def _print(self, direction: str, message: Message, items: Sequence[Decoded]) -> None:
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        kind = "request" if message.is_request else "answer"
        text = masked(items)
        if self._as_json:
            line = {"at": at, "direction": "sent" if direction == "->" else "received", "kind": kind}
            print(json.dumps(line | {"sequence": message.sequence, "items": json.loads(text)}), flush=True)
        else:
            say(f"{at} {direction} {kind} {message.sequence} {text}")


@contextlib.asynccontextmanager
async def _linked(config: Config, watcher: Watcher) -> AsyncIterator[Link]:
    logs.configure(config.logs.format, LogLevel.ERROR)  # the watcher says the rest
    roles = cloudstack_roles(config, _RunsNothing(), healthy=lambda: True)
    (link,) = await asyncio.to_thread(
        make_links, config.cloudstack, config.agent.state_dir, roles, lambda name: watcher
    )
    task = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _login(config: Config, seconds: float, as_json: bool) -> int:
    verdict = _Verdict()
    async with _linked(config, verdict) as link:
        try:
            async with asyncio.timeout(seconds):
                await verdict.known.wait()
        except TimeoutError:
            message = f"the server did not say within {seconds:g} s whether it takes this agent in"
            fail({"kind": "LinkLost", "retryable": "yes", "message": message, "details": {}}, as_json)
        host_id = link.status.host_id
    if verdict.failure is not None:
        fail(verdict.failure.model_dump(mode="json"), as_json)
    return host_id


async def _trace(config: Config, seconds: float | None, as_json: bool) -> None:
    async with _linked(config, _Printer(as_json)):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.Event().wait()
