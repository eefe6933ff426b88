"""The self-test of a pool of XenServer hosts: it finds what is wrong with one, and leaves nothing behind, also interrupted."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hypervisors.xen.pool import XenPool
from hypervisors.xen.selftest.checks import Check
from hypervisors.xen.selftest.run import CHECKS, CLEAN, Outcome, selftest
from stores.contract import MiB
from stores.errors import NotFound
from stores.transfer.engine import TransferEngine
from tests.agent_process import AGENT
from tests.doubles.xapi import Access, Pool, Settings, process, running
from tests.xen_pools import settings

NAMES = [check.name for check in CHECKS]
HOST_0 = "local-0"
"""An SR that only the coordinator sees, so that the other host redirects."""


def named(name: str) -> Check:
    return next(check for check in CHECKS if check.name == name)


QUICK: dict[str, Any] = {"grace_s": 1.0, "head_timeout_s": 1.0, "stall_timeout_s": 5.0}


@dataclass
class Bench:
    fake: Pool
    pool: XenPool
    engine: TransferEngine
    outcomes: list[Outcome] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)

    async def run(self, *, sr: str = HOST_0, iso: str | None = "isos", **further: Any) -> bool:
        return await selftest(self.pool, self.engine, sr, iso=iso, tell=self.outcomes.append, **further)

    def states(self) -> dict[str, str]:
        return {outcome.name: outcome.state for outcome in self.outcomes}

    def wrong(self) -> set[str]:
        return {outcome.name for outcome in self.outcomes if outcome.state == "otherwise"}


@asynccontextmanager
async def bench(folder: Path, **changes: Any) -> AsyncIterator[Bench]:
    """Somebody else's disk is in the SR, and the same afterwards; everything else is gone."""
    told = Settings(**{"data_destroy_wait_s": 0.1, **changes})
    async with running(folder / "p", told) as fake:
        stranger = await fake.controls.make_vdi((await fake.controls.srs())[HOST_0], 4 * MiB, name="somebody's")
        (network,) = fake.world.db.refs("network")
        fake.world.db.change("network", network, purpose=["nbd"])
        before = (await fake.controls.left())["vdis"]
        pool = XenPool(settings(fake.access, **QUICK))
        async with aclosing(TransferEngine(memory=8 * MiB, threads=4)) as engine, aclosing(pool):
            yield Bench(fake, pool, engine)
        left = await fake.controls.left()
        assert (left["tasks"], left["sessions"], left["dom0_vbds"]) == ([], [], [])
        assert left["vdis"] == before
        assert set(before) == {stranger}
    assert asyncio.all_tasks() == {asyncio.current_task()}


# -------------------------------------------------------------------------------------------------------- what it finds


async def test_a_pool_that_is_as_it_should_be(tmp_path: Path) -> None:
    async with bench(tmp_path) as here:
        assert await here.run()
        assert here.states() == dict.fromkeys([*NAMES, CLEAN], "ok")


async def test_what_a_pool_cannot_show(tmp_path: Path) -> None:
    """Not tried is not wrong."""
    async with bench(tmp_path, hosts=1) as here:
        (network,) = here.fake.world.db.refs("network")
        here.fake.world.db.change("network", network, purpose=[])
        await here.fake.controls.arm(
            where="rpc", step="start", action="fail", match="VDI.enable_cbt", error=["LICENCE_RESTRICTION", "cbt"]
        )
        assert await here.run(iso=None)
        assert {name for name, state in here.states().items() if state == "not tried"} == {
            "redirect",
            "iso",
            "nbd",
            "tracking",
        }


@pytest.mark.parametrize(
    ("lie", "check"),
    [
        ("answer-late", "answer"),
        ("beyond-taken", "failure"),
        ("bits-turned", "tracking"),
        ("clone-shared", "clone"),
        ("config-lost", "marks"),
        ("delta-all", "delta"),
        ("delta-short", "delta"),
        ("duplicates", "duplicate"),
        ("length-believed", "length"),
        ("size-down", "task"),
        ("snapshot-shared", "snapshot"),
    ],
)
async def test_each_thing_that_is_otherwise_is_found(tmp_path: Path, lie: str, check: str) -> None:
    async with bench(tmp_path, lies=(lie,)) as here:
        assert not await here.run(checks=[named(check)])
        assert here.wrong() == {check}
        assert here.outcomes[0].seen
        assert here.outcomes[0].means == named(check).otherwise


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ({"where": "import", "step": "attach", "action": "short", "at_byte": 512, "skip": 1}, "import"),
        ({"where": "import", "step": "attach", "action": "short", "at_byte": 512}, "vhd"),
        ({"where": "import", "step": "head", "action": "redirect", "to": "192.0.2.1", "host": 1}, "redirect"),
        ({"where": "import", "step": "attach", "action": "leave-plugged"}, "cancel"),
        ({"where": "export", "step": "body", "action": "false-success", "at_byte": MiB, "skip": 1}, "vhd"),
        ({"where": "async", "step": "start", "action": "fail", "match": "VDI.create"}, "task"),
        ({"where": "rpc", "step": "start", "action": "fail", "match": "VDI.get_nbd_info"}, "nbd"),
    ],
)
async def test_each_fault_is_found_where_it_is(tmp_path: Path, fault: dict[str, Any], check: str) -> None:
    async with bench(tmp_path) as here:
        await here.fake.controls.arm(**fault)
        assert not await here.run(checks=[named(check)])
        assert here.wrong() == {check}


async def test_a_check_that_hangs_ends(tmp_path: Path) -> None:
    async with bench(tmp_path) as here:
        await here.fake.controls.arm(where="async", step="start", action="hang", match="VDI.create")
        assert not await here.run(checks=[named("task")], limit_s=1.0)
        assert here.wrong() == {"task"}
        for task in (await here.fake.controls.left())["tasks"]:
            assert task["name_label"] == "Async.VDI.create"  # XAPI's own, which it does not give up
        await here.fake.controls.restart()


async def test_an_sr_that_is_not_there(tmp_path: Path) -> None:
    async with bench(tmp_path) as here:
        with pytest.raises(NotFound):
            await here.run(sr="nowhere")
        assert here.outcomes == []


# ---------------------------------------------------------------------------------------------------------- interrupted


class Watched(Counter[str]):
    """The pool's count of calls: `act` when one of that number comes."""

    def __init__(self, number: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.number = number
        self.act = act
        self.seen = 0

    def __setitem__(self, method: str, count: int) -> None:
        super().__setitem__(method, count)
        self.seen += 1
        if self.seen == self.number:
            self.act()


@pytest.mark.parametrize("check", CHECKS, ids=NAMES)
async def test_interrupted_at_every_third_call(tmp_path: Path, check: Check) -> None:
    """Of each check, while the pool is at the call."""
    async with bench(tmp_path) as here:
        counted = here.fake.world.calls = Watched(0, lambda: None)
        assert await here.run(checks=[check])
        for number in range(1, counted.seen, 3):
            here.outcomes.clear()
            task = asyncio.create_task(here.run(checks=[check]))
            here.fake.world.calls = Watched(number, task.cancel)
            await asyncio.wait({task})
            assert task.cancelled() or CLEAN in here.states()
            assert here.wrong() == set()
            left = await here.fake.controls.left()
            assert (len(left["vdis"]), left["dom0_vbds"]) == (1, [])


# ---------------------------------------------------------------------------------------------------- the command line


@dataclass(frozen=True)
class Command:
    """`storage-agent selftest` for a pool in another process."""

    access: Access
    folder: Path

    def argv(self, *options: str) -> list[str]:
        password, ca = self.folder / "password", self.folder / "ca.pem"
        password.touch(mode=0o600)
        password.write_text(self.access.password + "\n")
        ca.write_text(self.access.ca_pem)
        hosts = [part for url in self.access.urls for part in ("--xen", url)]
        return [str(AGENT), "selftest", *hosts, "--password-file", str(password), "--ca-file", str(ca), *options]


def test_the_command(tmp_path: Path) -> None:
    with process(short_folder(tmp_path), Settings(lies=("config-lost",))) as remote:
        argv = Command(remote.access, tmp_path).argv("--sr", remote.control("srs")["shared"])
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        assert [line.split()[0] for line in lines] == [*NAMES, CLEAN]
        assert done.returncode == 1
        (wrong,) = (line for line in lines if " otherwise " in line)
        assert wrong.startswith("marks ")
        assert remote.access.password not in done.stdout + done.stderr
        assert remote.control("left")["vdis"] == {}
        done = subprocess.run([*argv, "--json"], capture_output=True, text=True, check=False)
        assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == [*NAMES, CLEAN]
        unknown = Command(remote.access, tmp_path).argv("--sr", "nowhere", "--json")
        done = subprocess.run(unknown, capture_output=True, text=True, check=False)
        assert (done.returncode, json.loads(done.stdout)["error"]["kind"]) == (1, "NotFound")


def test_the_command_interrupted(tmp_path: Path) -> None:
    with process(short_folder(tmp_path), Settings(attach_s=0.2)) as remote:
        argv = Command(remote.access, tmp_path).argv("--sr", "shared")
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            while not child.stdout.readline().startswith("import "):
                pass
            child.send_signal(signal.SIGINT)
            assert child.stdout.read().splitlines()[-1].split()[:2] == [CLEAN, "ok"]
        assert child.returncode == 130
        left = remote.control("left")
        assert (left["vdis"], left["tasks"], left["sessions"], left["dom0_vbds"]) == ({}, [], [], [])


def short_folder(folder: Path) -> Path:
    """Sockets are in it."""
    return folder / "p"
