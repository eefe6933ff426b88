"""Operations on a Hyper-V host, against the double: made once under one id, polled over lost connections, nothing left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from hypervisors.hyperv import jobs
from hypervisors.hyperv.errors import HypervFailure
from hypervisors.hyperv.psrp import PsrpPort
from stores.contract import MiB
from stores.errors import NotFound, StorageError
from tests.doubles.hyperv import Host, ScriptFault, WireFault
from tests.hyperv import child, disk, dynamic, until


async def test_a_disk_is_made_once_under_one_id(hyperv: Host, powershell: PsrpPort) -> None:
    argument = {**dynamic("a.vhdx", 4 * MiB), "operation": "one", "partial": disk("a.one.partial.vhdx")}
    first = await powershell.run("new-vhd", argument)
    assert await powershell.run("new-vhd", argument) == first
    with pytest.raises(StorageError) as caught:
        await powershell.run("new-vhd", {**argument, "operation": "two"})
    assert caught.value.kind == "AlreadyExists"
    with pytest.raises(HypervFailure, match="OperationReused"):
        await powershell.run("new-vhd", {**argument, "path": disk("b.vhdx")})
    await jobs.remove_operation(powershell, "one", discard=False)
    assert (await powershell.run("get-vhd", {"path": disk("a.vhdx")}))["disk_id"] == first["disk_id"]


async def test_a_disk_whose_maker_is_cancelled_is_gone(hyperv: Host, powershell: PsrpPort, tmp_path: Path) -> None:
    hyperv.faults.scripts.append(ScriptFault("new-vhd", after=True))  # it has its name already
    making = asyncio.create_task(jobs.make_disk(powershell, dynamic("a.vhdx", 4 * MiB), operation="one"))
    await until(lambda: (tmp_path / "pool" / "a.vhdx").exists())
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert list((tmp_path / "pool").iterdir()) == []


async def test_a_disk_of_somebody_else_stays(hyperv: Host, powershell: PsrpPort, tmp_path: Path) -> None:
    await jobs.make_disk(powershell, dynamic("a.vhdx", 4 * MiB), operation="one")
    before = (tmp_path / "pool" / "a.vhdx").read_bytes()
    with pytest.raises(StorageError) as caught:
        await jobs.make_disk(powershell, dynamic("a.vhdx", 4 * MiB), operation="two")
    assert caught.value.kind == "AlreadyExists"
    assert (tmp_path / "pool" / "a.vhdx").read_bytes() == before


CONVERTED = {"source": disk("child.vhdx"), "destination": disk("new.vhdx"), "kind": "Dynamic", "block_size": MiB}


async def chain(hyperv: Host, powershell: PsrpPort) -> bytes:
    """`child.vhdx` on `base.vhdx`; what it holds."""
    await jobs.make_disk(powershell, dynamic("base.vhdx", 4 * MiB), operation="base")
    await hyperv.model.vhds.write(disk("base.vhdx"), 0, b"base" * 1000)
    await jobs.make_disk(powershell, child("child.vhdx", "base.vhdx"), operation="child")
    await hyperv.model.vhds.write(disk("child.vhdx"), 2 * MiB, b"child" * 1000)
    return await hyperv.model.vhds.content(disk("child.vhdx"))


async def convert(powershell: PsrpPort, tell: Callable[[int], None] = lambda percent: None) -> None:
    await jobs.convert(powershell, CONVERTED, operation="job", tell=tell, poll_s=0.01)


async def merge(powershell: PsrpPort, tell: Callable[[int], None] = lambda percent: None) -> None:
    argument = {"path": disk("child.vhdx"), "destination": disk("base.vhdx")}
    await jobs.merge(powershell, argument, operation="job", tell=tell, poll_s=0.01)


@pytest.mark.parametrize(("work", "result"), [(convert, "new.vhdx"), (merge, "base.vhdx")])
async def test_a_job_that_is_polled(hyperv: Host, powershell: PsrpPort, work: Any, result: str) -> None:
    content = await chain(hyperv, powershell)
    hyperv.model.let_jobs_end.clear()
    heard: list[int] = []

    def tell(percent: int) -> None:
        heard.append(percent)
        if len(heard) == 3:
            hyperv.model.let_jobs_end.set()

    await work(powershell, tell)
    assert heard[:3] == [50, 50, 50]
    assert sha256(await hyperv.model.vhds.content(disk(result))).digest() == sha256(content).digest()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("work", "result"), [(convert, "new.vhdx"), (merge, "base.vhdx")])
async def test_a_job_survives_lost_connections_at_every_message(
    hyperv: Host, powershell: PsrpPort, work: Any, result: str, when: str
) -> None:
    content = await chain(hyperv, powershell)
    step, hits = 0, 1
    while hits:
        fault = WireFault("*", when, skip=step)  # type: ignore[arg-type]
        hyperv.faults.wire[:] = [fault]
        await work(powershell)
        assert sha256(await hyperv.model.vhds.content(disk(result))).digest() == sha256(content).digest(), step
        hyperv.faults.wire.clear()
        if work is convert:
            assert (await powershell.run("delete-file", {"path": disk(result)}))["deleted"]
        else:
            await hyperv.model.vhds.set_parent(disk("child.vhdx"), disk("base.vhdx"), ignore_mismatch=True)
        step, hits = step + 1, fault.hits
    assert step > 8


@pytest.mark.parametrize(("work", "result"), [(convert, "new.vhdx"), (merge, "base.vhdx")])
async def test_a_job_that_the_host_forgot_is_started_again(
    hyperv: Host, powershell: PsrpPort, work: Any, result: str
) -> None:
    content = await chain(hyperv, powershell)
    hyperv.model.let_jobs_end.clear()
    heard: list[int] = []

    def tell(percent: int) -> None:
        if not heard:
            hyperv.model.forget_jobs()
            hyperv.model.let_jobs_end.set()
        heard.append(percent)

    await work(powershell, tell)
    starts = [name for name, _ in hyperv.scripts.ran if name.startswith("start-")]
    assert len(starts) == 2
    assert sha256(await hyperv.model.vhds.content(disk(result))).digest() == sha256(content).digest()


async def test_a_conversion_that_is_cancelled_leaves_no_file(
    hyperv: Host, powershell: PsrpPort, tmp_path: Path
) -> None:
    await chain(hyperv, powershell)
    hyperv.model.let_jobs_end.clear()
    polled = asyncio.Event()
    working = asyncio.create_task(convert(powershell, lambda percent: polled.set()))
    await polled.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert sorted(file.name for file in (tmp_path / "pool").iterdir()) == ["base.vhdx", "child.vhdx"]


async def test_a_job_that_fails(hyperv: Host, powershell: PsrpPort, tmp_path: Path) -> None:
    await chain(hyperv, powershell)
    hyperv.model.let_jobs_end.clear()

    def tell(percent: int) -> None:
        (tmp_path / "pool" / "base.vhdx").unlink(missing_ok=True)
        hyperv.model.let_jobs_end.set()

    with pytest.raises(NotFound, match="start-convert-vhd"):
        await convert(powershell, tell)
    assert sorted(file.name for file in (tmp_path / "pool").iterdir()) == ["child.vhdx"]


async def test_a_host_that_is_gone_at_the_end_keeps_a_record(
    hyperv: Host, powershell: PsrpPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_CLEANUP_S", 0.2)
    await chain(hyperv, powershell)
    hyperv.model.let_jobs_end.clear()

    def tell(percent: int) -> None:
        hyperv.faults.wire.append(WireFault("*", times=None))
        raise RuntimeError("the agent has a problem of its own")

    with pytest.raises(RuntimeError):
        await convert(powershell, tell)
    hyperv.faults.wire.clear()
    await hyperv.shells.close()  # as the host does when they have idled long enough
    assert await powershell.run("get-operations", {}) == {"operations": ["job"]}
    await jobs.remove_operation(powershell, "job", discard=True, poll_s=0.01)


@pytest.mark.parametrize(("path", "operation"), [("D:\\a.vhdx", "a/b"), ("D:\\a.vhdx", ""), ("D:\\a.b\\c", "op")])
def test_names_of_partial_disks_that_cannot_be(path: str, operation: str) -> None:
    with pytest.raises(StorageError) as caught:
        jobs.partial_path(path, operation)
    assert caught.value.kind == "InvalidReference"
