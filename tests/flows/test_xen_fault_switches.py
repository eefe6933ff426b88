"""Every fault of the fake pool has a test. Here are those that are not for every verb, or leave more to be said."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.xapi import Remote
from tests.doubles.xapi.faults import switches
from tests.flows.test_xen_faults import CALLS, CHANGES, COPIES, DAMAGED, HANGS, TRANSFERS, UNAVAILABLE, case, walk
from tests.xen_scene import IMPORTING, furnished

SILENT = {
    "template from raw": [case("connect", "start", "hang", UNAVAILABLE)],
    "create": [
        case("rpc", "start", "delay", match=CHANGES, seconds=0.05),
        case("rpc", "start", "hang", match="*.get_*"),
        case("rpc", "answer", "hang", match="*.get_*"),
        case("rpc", "start", "hang", UNAVAILABLE, match="VDI.create"),
        case("rpc", "answer", "hang", UNAVAILABLE, match="VDI.create"),
    ],
}
"""A host that is there and says nothing."""

PLUGGED = {
    "template from raw": case("import", "attach", "leave-plugged"),
    "full backup": case("export", "attach", "leave-plugged"),
}
"""A host that cannot detach the disk: nobody is told, and it is done by us."""

STUCK = case("async", "start", "hang")
LOST = case("import", "attach", "short", DAMAGED, at_byte=512)
"""A host that says it has written what it has not. It shows where imports are verified, and to the self-test's checks "import"
and "vhd" (`test_xen_selftest`)."""


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Path, Remote]]:
    with furnished() as made:
        yield made


def test_every_switch_has_a_test() -> None:
    tables = [*TRANSFERS.values(), *HANGS.values(), *SILENT.values(), COPIES, CALLS, PLUGGED.values(), [STUCK, LOST]]
    tested = {(one.fault["where"], one.fault["step"], one.fault["action"]) for table in tables for one in table}
    assert tested == switches()


@pytest.mark.parametrize("name", SILENT)
async def test_hosts_that_say_nothing(stage: tuple[Path, Remote], name: str) -> None:
    async with walk(stage, name, head_timeout_s=1.0, call_timeout_s=1.0) as made:
        for one in SILENT[name]:
            assert await made.meets(one), str(one)


@pytest.mark.parametrize("name", PLUGGED)
async def test_disks_that_a_host_does_not_detach(stage: tuple[Path, Remote], name: str) -> None:
    async with walk(stage, name) as made:
        assert await made.meets(PLUGGED[name])


@pytest.mark.parametrize("name", IMPORTING)
async def test_writes_that_a_host_loses(stage: tuple[Path, Remote], name: str) -> None:
    async with walk(stage, name, verify_imports=True) as made:
        assert await made.meets(LOST)


async def test_a_copy_that_is_stuck(stage: tuple[Path, Remote]) -> None:
    """It ends with the command, which has a deadline. XAPI's task, which cannot be cancelled, XAPI shall remove when it ends;
    the agent's next start does it where it never does."""
    async with walk(stage, "copy to another sr", grace_s=0.2) as made:
        control = made.here.remote.control
        control("arm", **STUCK.fault)
        copying = asyncio.create_task(made.here.run(made.verb.request(made.here), "c-stuck"))
        while "Async.VDI.copy" not in [task["name_label"] for task in control("left")["tasks"]]:
            await asyncio.sleep(0.01)
        copying.cancel()
        await asyncio.wait([copying])
        assert copying.cancelled()
        assert control("disarm") == 1
        (task,) = control("left")["tasks"]
        assert task["current_operations"] == {"task": "destroy"}
        assert made.here.leftovers() == ["Async.VDI.copy"]
        assert made.here.state() == made.before
        await made.here.tidied()
        assert made.here.leftovers() == []
