"""Hyper-V for tests: the double, a port to it, and what may be left when both are gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hypervisors.hyperv.endpoint import Endpoint
from hypervisors.hyperv.psrp import PsrpPort
from hypervisors.hyperv.shell import Shell
from tests.doubles.hyperv import Host, running
from tests.doubles.hyperv.host import PASSWORD
from tests.secret_scan import register_secret

POOL = "D:\\pool"


def disk(name: str) -> str:
    return f"{POOL}\\{name}"


def quick_shell(endpoint: Endpoint) -> Shell:
    """One that finds out soon that a host says nothing."""
    return Shell(endpoint, connect_s=5, answer_s=6, poll_s=1, goodbye_s=2)


def port_to(endpoint: Endpoint, **told: Any) -> PsrpPort:
    return PsrpPort(endpoint, **{"pause_s": 0.01, "shell": quick_shell, **told})


@asynccontextmanager
async def hyperv_host(
    folder: Path, *, pool: Path | None = None, deaths: bool = False, **told: Any
) -> AsyncIterator[Host]:
    """A host whose `D:\\pool` is `pool`, or `folder / "pool"`, which is made; afterwards no thread, no shell, no record and no
    partial file is left. `deaths`: of processes that had shells, which the host will miss after some minutes."""
    pool = pool or folder / "pool"
    pool.mkdir()
    (folder / "host").mkdir()
    async with running(folder / "host", roots={POOL: pool}, **told) as host:
        yield host
        assert deaths or host.shells.open == {}
        assert host.shells.running == 0
        assert host.model.records == {}
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("powershell")] == []
    assert [file.name for file in pool.iterdir() if ".partial." in file.name] == []


async def until(ready: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not ready():
            await asyncio.sleep(0.01)


def dynamic(name: str, size: int) -> dict[str, Any]:
    """The argument of `new-vhd` but for what belongs to its operation."""
    return {
        "path": disk(name),
        "kind": "Dynamic",
        "size": size,
        "block_size": 1 << 20,
        "sector_size": 512,
        "parent": None,
    }


def child(name: str, parent: str) -> dict[str, Any]:
    return {
        **dynamic(name, 0),
        "kind": "Differencing",
        "size": None,
        "block_size": None,
        "sector_size": None,
        "parent": disk(parent),
    }


@pytest.fixture
async def hyperv(tmp_path: Path) -> AsyncIterator[Host]:
    register_secret(PASSWORD, "the password of the Hyper-V host")
    async with hyperv_host(tmp_path) as made:
        yield made


@pytest.fixture
async def powershell(hyperv: Host) -> AsyncIterator[PsrpPort]:
    made = port_to(hyperv.endpoint)
    yield made
    await made.aclose()
