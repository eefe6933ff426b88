"""The processes that call Ceph: what becomes of them and of their calls when they die, stall, or are not wanted any more."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from stores.backends import rbd_calls
from stores.backends.rbd_calls import CallFailed, RbdCalls
from stores.tools.process import ToolFailed, ToolRunner
from tests.ceph import Ceph
from tests.processes import children


class Calls:
    """As the cluster's administrator, to a pool of its own."""

    def __init__(self, ceph: Ceph, pool: str) -> None:
        self.told = (str(ceph.conf), "admin", pool)
        self.calls = RbdCalls(ToolRunner())

    async def call(self, name: str, *, deadline_s: float = 30, **arguments: Any) -> Any:
        return await self.calls.call(self.told, name, arguments, deadline_s)


@pytest.fixture
async def here(ceph: Ceph) -> AsyncIterator[Calls]:
    before = children()
    made = Calls(ceph, ceph.new_pool())
    yield made
    await made.calls.aclose()
    await made.calls.aclose()
    assert children() == before
    ceph.remove_pool(made.told[2])


def workers(before: Sequence[str]) -> list[int]:
    return [int(process) for process in children() if process not in before]


async def test_one_process_for_one_call_after_another(here: Calls) -> None:
    before = children()
    await here.call("create", image="one", size=1 << 20)
    first = workers(before)
    assert (await here.call("info", image="one"))["size"] == 1 << 20
    with pytest.raises(CallFailed) as failed:
        await here.call("info", image="two")
    assert failed.value.number == 2
    assert workers(before) == first
    assert len(first) == 1


async def test_many_at_once(here: Calls) -> None:
    before = children()
    found = await asyncio.gather(*(here.call("sizes") for _ in range(5)))
    assert found == [{}] * 5
    assert len(workers(before)) == 2


@pytest.mark.parametrize(
    ("number", "failure"), [(signal.SIGKILL, ToolFailed), (signal.SIGSTOP, TimeoutError)], ids=["dies", "stalls"]
)
async def test_a_process_that(here: Calls, number: signal.Signals, failure: type[Exception]) -> None:
    """Whoever called it is told, and the next call has another one."""
    before = children()
    await here.call("sizes")
    [worker] = workers(before)
    os.kill(worker, signal.SIGSTOP)
    asked = asyncio.create_task(here.call("sizes", deadline_s=1))
    await asyncio.sleep(0)
    os.kill(worker, number)
    with pytest.raises(failure):
        await asked
    assert workers(before) == []
    assert await here.call("sizes") == {}


async def test_one_that_died_meanwhile_is_not_asked(here: Calls) -> None:
    before = children()
    await here.call("sizes")
    [worker] = workers(before)
    os.kill(worker, signal.SIGKILL)
    await asyncio.sleep(0.1)
    assert await here.call("sizes") == {}


async def test_a_cancelled_call_leaves_no_process(here: Calls) -> None:
    before = children()
    for pause in (0.0, 0.02, 0.1):
        asked = asyncio.create_task(here.call("sizes"))
        await asyncio.sleep(pause)
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled() == (workers(before) == [])


def test_one_that_nobody_asks_ends(ceph: Ceph) -> None:
    worker = Path(rbd_calls.__file__).with_name("rbd_worker.py")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = ["/usr/bin/python3", "-I", str(worker), str(theirs.fileno()), "0.1", str(ceph.conf), "admin", "nowhere"]
        assert subprocess.run(argv, pass_fds=[theirs.fileno()], timeout=30).returncode == 0
        assert ours.recv(1000) == b'{"value": null}\n'
