"""What is left in an SR by processes that died, and by calls that failed, at every single call to XAPI: after `discard`, or
`reconcile`, nothing; and nothing is lost that was there before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypervisors.documents import About
from hypervisors.narrowing import as_pending_disk
from hypervisors.xen.marks import COPYING, Copying, Held, lock_key
from hypervisors.xen.reconciling import reconcile
from stores.contract import Kind, MiB
from stores.errors import StorageError
from tests.doubles.xapi import Pool, Settings, running
from tests.images import content
from tests.xen_pools import SIZE, Clock, Site, crashed, sha256, shared_sr

OLD, NEW = content(MiB, seed=1), content(MiB, seed=2)
TOKEN = "command-2"
RECORD = About("a", ("record",))
CHANGES = "*.[!g]*"
"""Calls that change something: all that do not get."""


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[Pool]:
    async with running(tmp_path / "p", Settings()) as pool:
        yield pool
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def site(fake: Pool) -> AsyncIterator[Site]:
    async with shared_sr(fake) as one:
        yield one
        assert await one.leftovers() == []


# ------------------------------------------------------------------------------------------------- what is interrupted


@dataclass(frozen=True)
class Case:
    """With the disk "a" of content OLD and its record, which another command made. `whole`: what the disks called so hold if it
    came to its end; `before`: if it did not."""

    run: Callable[[Site], Awaitable[object]]
    before: dict[str, bytes]
    whole: dict[str, bytes]
    refs: tuple[str, ...]
    """What `discard` is asked for."""
    calls: int
    """At least so many change something."""


async def make(site: Site) -> None:
    async with site.store.write("b", Kind.MANAGED_DISK, token=TOKEN) as pending:
        disk = await as_pending_disk(pending).make(SIZE)
        await site.fill(disk.id, NEW)
        await site.sr.documents.put(About("b", ("record",)), b"b's", token=TOKEN)
        await as_pending_disk(pending).commit()


CASES = {
    "make": Case(make, {"a": OLD}, {"a": OLD, "b": NEW}, ("b",), calls=5),
    "replace": Case(
        lambda site: site.make("a", token=TOKEN, data=NEW, replace=True), {"a": OLD}, {"a": NEW}, ("a",), calls=6
    ),
    "snapshot": Case(
        lambda site: site.derive("b", "a", frozen=True, token=TOKEN), {"a": OLD}, {"a": OLD, "b": OLD}, ("b",), calls=6
    ),
    "clone": Case(
        lambda site: site.derive("b", "a", frozen=False, token=TOKEN), {"a": OLD}, {"a": OLD, "b": OLD}, ("b",), calls=6
    ),
    "delete": Case(lambda site: site.store.delete("a"), {"a": OLD}, {}, (), calls=0),
}


async def begin(site: Site) -> None:
    for ref in await site.refs():
        await site.store.delete(ref)
    await site.make("a", token="command-1", data=OLD)
    await site.sr.documents.put(RECORD, b"a's", token="command-1")


async def see(site: Site, case: Case) -> None:
    """One of the two, and nothing else."""
    found = {ref: await site.digest(ref) for ref in await site.refs()}
    ends = [{ref: sha256(data) for ref, data in end.items()} for end in (case.before, case.whole)]
    assert found in ends
    assert await site.names() == sorted(found)
    assert await site.leftovers() == []
    kept = {ref: await site.sr.documents.read(About(ref, ("record",))) for ref in found}
    if "a" in found:
        assert kept["a"] == b"a's"
    if case is CASES["make"] and "b" in found:
        assert kept["b"] == b"b's"


async def discard(site: Site, case: Case) -> None:
    for ref in case.refs:
        await site.store.discard(ref, token=TOKEN)
        await site.store.discard(ref, token=TOKEN)


async def reconciled(site: Site, case: Case) -> None:
    await reconcile(site.pool)
    await reconcile(site.pool)


@pytest.mark.parametrize("recover", [discard, reconciled])
@pytest.mark.parametrize("step", ["start", "answer"])
@pytest.mark.parametrize("name", CASES)
async def test_a_process_that_dies_at_any_call(
    fake: Pool, name: str, step: str, recover: Callable[[Site, Case], Awaitable[None]]
) -> None:
    """Just before it is made, or before its answer comes. From then on it changes nothing."""
    case, call, hit = CASES[name], 0, True
    async with shared_sr(fake) as site:
        while hit:
            await begin(site)
            async with crashed(fake, grace_s=0.01) as doomed:
                await doomed.refs()
                if step == "answer":
                    await fake.controls.arm(where="rpc", step="answer", action="drop", match=CHANGES, skip=call)
                first = call + (step == "answer")
                await fake.controls.arm(where="rpc", step="start", action="drop", match=CHANGES, skip=first, times=None)
                with suppress(StorageError):
                    await case.run(doomed)
                hit = any(fault.hits for fault in fake.world.faults._armed)
            await fake.controls.disarm()
            await recover(site, case)
            await see(site, case)
            call += 1
    assert call > case.calls


@pytest.mark.parametrize("step", ["start", "answer"])
@pytest.mark.parametrize("name", CASES)
async def test_one_call_that_fails(fake: Pool, name: str, step: str) -> None:
    """It is made again, or the failure is the command's, which leaves nothing by itself."""
    case, call, hit = CASES[name], 0, True
    async with shared_sr(fake) as site:
        while hit:
            await begin(site)
            await fake.controls.arm(where="rpc", step=step, action="drop", match=CHANGES, skip=call)
            (fault,) = fake.world.faults._armed
            with suppress(StorageError):
                await case.run(site)
            hit = bool(fault.hits)
            await fake.controls.disarm()
            await see(site, case)
            call += 1
    assert call > case.calls


@pytest.mark.parametrize("name", CASES)
async def test_a_command_that_is_cancelled_at_any_call(fake: Pool, name: str) -> None:
    case, call, hit = CASES[name], 0, True
    async with shared_sr(fake) as site:
        while hit:
            await begin(site)
            await fake.controls.arm(where="rpc", step="start", action="delay", seconds=0.02, skip=call)
            (fault,) = fake.world.faults._armed
            command = asyncio.ensure_future(case.run(site))
            while not fault.hits and not command.done():
                await asyncio.sleep(0.001)
            hit = bool(fault.hits)
            command.cancel()
            await asyncio.wait([command])
            assert command.cancelled() or not command.exception()
            await fake.controls.disarm()
            await see(site, case)
            call += 1
    assert call > case.calls


# -------------------------------------------------------------------------------------------- what is not to be touched


async def test_what_a_command_is_at_is_let_be(site: Site) -> None:
    """Its own and another agent's."""
    await site.make("a", data=OLD)
    async with (
        shared_sr(site.fake, originator="agent-2") as other,
        site.store.write("b", Kind.MANAGED_DISK, token=TOKEN) as first,
        other.store.write("c", Kind.MANAGED_DISK, token=TOKEN) as second,
    ):
        for pending in (first, second):
            await as_pending_disk(pending).make(SIZE)
        for agent in (site, other):
            await reconcile(agent.pool)
            for ref in ("a", "b", "c"):
                await agent.store.discard(ref, token="another")
        await site.store.discard("b", token=TOKEN)  # which is alive
        for pending in (first, second):
            await as_pending_disk(pending).commit()
    assert await site.names() == ["a", "b", "c"]


async def test_what_others_made_is_let_be(site: Site) -> None:
    """Copies of ours among it, also of those that were being made or copied at that moment."""
    info = await site.make("a", data=OLD)
    source = site.handle_of(info.version or "")
    async with site.store.write("b", Kind.MANAGED_DISK, token=TOKEN) as pending:
        disk = await as_pending_disk(pending).make(SIZE)
        copies = [await site.pool.call("VDI.clone", site.handle_of(disk.id), {})]
    copying = Copying(
        ref="c", token=TOKEN, owner="agent-1", id="dead", of=info.version or "", name="a", until=Clock().now
    )
    await site.pool.call("VDI.add_to_other_config", source, COPYING, copying.text())
    renamed = await site.pool.call("VDI.snapshot", source, {})
    await site.pool.call("VDI.set_name_label", renamed, "somebody's snapshot")
    attached = await site.pool.call("VDI.snapshot", source, {})
    site.fake.world.db.add("VBD", VM=site.fake.world.db.find("VM", name_label="guest")[0], VDI=attached)
    copies += [renamed, attached]
    for ref in ("a", "b", "c"):
        await site.store.discard(ref, token=TOKEN)
    await reconcile(site.pool)
    assert len(await site.vdis()) == len(copies) + 1
    assert all(site.fake.world.db.has("VDI", copy) for copy in [source, *copies])
    for copy in copies:  # which carry the note, as copies of copies do: it says nothing there
        await site.pool.call("VDI.remove_from_other_config", copy, COPYING)


async def test_what_a_command_will_go_on_with_is_let_be(fake: Pool) -> None:
    async with crashed(fake) as doomed:
        writing = doomed.store.write("a", Kind.MANAGED_DISK, token=TOKEN)
        await as_pending_disk(await writing.__aenter__()).make(SIZE)
        await fake.controls.arm(where="rpc", step="start", action="drop", times=None)
        await writing.__aexit__(None, None, None)
        await doomed.pool.aclose()
        await fake.controls.disarm()
    async with shared_sr(fake) as site:
        await reconcile(site.pool, claimed={TOKEN})
        assert await site.names() == ["a"]
        await reconcile(site.pool)
        assert (await site.names(), await site.leftovers()) == ([], [])


async def test_another_agents_are_removed_when_their_lock_has_expired(fake: Pool) -> None:
    clock = Clock()
    async with crashed(fake, originator="agent-2") as doomed:
        writing = doomed.store.write("a", Kind.MANAGED_DISK, token=TOKEN)
        await as_pending_disk(await writing.__aenter__()).make(SIZE)
        await fake.controls.arm(where="rpc", step="start", action="drop", times=None)
        await writing.__aexit__(None, None, None)
        await doomed.pool.aclose()
        await fake.controls.disarm()
    async with shared_sr(fake, clock=clock) as site:
        await reconcile(site.pool)
        assert await site.names() == ["a"]
        clock.now += 140  # less than clocks may differ
        await reconcile(site.pool)
        assert await site.names() == ["a"]
        clock.now += 20
        await reconcile(site.pool)
        assert (await site.names(), await site.leftovers()) == ([], [])


async def test_locks_of_others_that_are_not_ours_to_read(site: Site) -> None:
    """Somebody's key in the SR stays."""
    await site.pool.call("SR.add_to_other_config", site.handle, lock_key("a"), "something")
    held = Held(owner="agent-2", id="x", until=Clock().now + 10)
    await site.pool.call("SR.add_to_other_config", site.handle, lock_key("b"), held.text())
    await reconcile(site.pool)
    assert set(await site.pool.call("SR.get_other_config", site.handle)) == {lock_key("a"), lock_key("b")}
    for ref in ("a", "b"):
        await site.pool.call("SR.remove_from_other_config", site.handle, lock_key(ref))


# ---------------------------------------------------------------------------------------------------- tasks and VBDs


async def pieces() -> AsyncIterator[bytes]:
    yield bytes(MiB)
    await asyncio.Event().wait()


async def test_transfers_of_a_dead_process_are_ended(fake: Pool) -> None:
    """Its task, the disk that its host keeps attached, and the disk itself."""
    async with crashed(fake) as doomed:
        writing = doomed.store.write("a", Kind.MANAGED_DISK, token=TOKEN)
        disk = await as_pending_disk(await writing.__aenter__()).make(SIZE)
        await fake.controls.arm(where="import", step="attach", action="leave-plugged")
        streams = (await doomed.pool.connection()).streams
        uploading = asyncio.create_task(streams.upload(disk.id, pieces(), image_format="raw", length=SIZE))
        while not (await fake.controls.left())["dom0_vbds"]:
            await asyncio.sleep(0.01)
        await fake.controls.arm(where="rpc", step="start", action="drop", times=None)
        uploading.cancel()
        await asyncio.wait([uploading])
        await writing.__aexit__(None, None, None)
        await doomed.pool.aclose()
        await fake.controls.disarm()
    async with shared_sr(fake) as site:
        assert len((await fake.controls.left())["tasks"]) == 1
        await reconcile(site.pool)
        assert (await site.names(), await site.leftovers()) == ([], [])


async def test_a_finished_disk_that_a_dead_transfer_keeps_attached_is_let_go(fake: Pool) -> None:
    async with crashed(fake) as doomed:
        await doomed.make("a", data=OLD)
        await fake.controls.arm(where="export", step="attach", action="leave-plugged")
        info = await doomed.store.stat("a")
        streams = (await doomed.pool.connection()).streams
        download = streams.download(info.version or "", image_format="raw")
        async for _ in await download.__aenter__():
            break
        await fake.controls.arm(where="rpc", step="start", action="drop", times=None)
        await download.__aexit__(None, None, None)
        await doomed.pool.aclose()
        await fake.controls.disarm()
    async with shared_sr(fake) as site:
        assert (await fake.controls.left())["dom0_vbds"]
        await reconcile(site.pool)
        assert await site.leftovers() == []
        assert await site.digest("a") == sha256(OLD)


async def test_an_unfinished_disk_that_stays_attached_is_let_go(site: Site) -> None:
    """By the command itself, when its host does not do it."""
    await site.fake.controls.arm(where="import", step="attach", action="leave-plugged")

    async def whole() -> AsyncIterator[bytes]:
        yield bytes(SIZE)

    async with site.store.write("a", Kind.MANAGED_DISK, token=TOKEN) as pending:
        disk = await as_pending_disk(pending).make(SIZE)
        streams = (await site.pool.connection()).streams
        await streams.upload(disk.id, whole(), image_format="raw", length=SIZE)
        assert (await site.fake.controls.left())["dom0_vbds"]
    assert await site.vdis() == {}
