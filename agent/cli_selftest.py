"""`storage-agent selftest`: tries on a hypervisor what the agent takes for granted about it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli_exit import Exit, reporting, say
from stores.secret import Secret

if TYPE_CHECKING:  # imported when it runs
    from hypervisors.xen.config import XenPoolSettings
    from hypervisors.xen.selftest.run import Outcome


def xen(
    hosts: Sequence[str],
    sr: str,
    iso: str | None,
    user: str,
    password_file: Path | None,
    ca_file: Path | None,
    fingerprints: Sequence[str],
    as_json: bool,
) -> None:
    """Exits with `Exit.FAILED` where a check saw something else. Ctrl-C removes what was made, and then ends."""
    with reporting(as_json):
        settings = _settings(hosts, user, password_file, ca_file, fingerprints)
        if not asyncio.run(_tried(settings, sr, iso, as_json)):
            raise SystemExit(Exit.FAILED)


def _settings(
    hosts: Sequence[str], user: str, password_file: Path | None, ca_file: Path | None, fingerprints: Sequence[str]
) -> XenPoolSettings:
    from hypervisors.xen.config import XenPoolSettings
    from hypervisors.xen.hosts import parse_host
    from stores.errors import InvalidReference

    if fingerprints and len(fingerprints) != len(hosts):
        raise InvalidReference(
            f"{len(hosts)} hosts and {len(fingerprints)} fingerprints: one is needed for each host, in the same order"
        )
    pins: Sequence[str | None] = fingerprints or [None] * len(hosts)
    return XenPoolSettings(
        name=hosts[0],
        hosts=tuple(parse_host(host, pin) for host, pin in zip(hosts, pins, strict=True)),
        user=user,
        password=password_file.absolute() if password_file is not None else Secret(""),
        originator="storage-agent selftest",
        ca_file=ca_file,
    )


async def _tried(settings: XenPoolSettings, sr: str, iso: str | None, as_json: bool) -> bool:
    from hypervisors.xen.pool import XenPool
    from hypervisors.xen.selftest.run import selftest
    from stores.transfer.engine import TransferEngine

    engine, pool = TransferEngine(), XenPool(settings)
    async with contextlib.aclosing(engine), contextlib.aclosing(pool):
        return await selftest(pool, engine, sr, iso=iso, tell=_as_json if as_json else _show)


def _as_json(outcome: Outcome) -> None:
    print(json.dumps(dataclasses.asdict(outcome)), flush=True)


def _show(outcome: Outcome) -> None:
    say(f"{outcome.name:10} {outcome.state:9} {outcome.seen}" + (f" -> {outcome.means}" if outcome.means else ""))
