"""Disks that a host keeps attached after a transfer that went well, because it could not detach them, or nobody was there to
see to it: they are let go, by the command itself or by the agent's next start. What is not provably ours is not touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hypervisors.narrowing import as_pending_disk
from hypervisors.xen.reconciling import reconcile
from stores.contract import Kind, MiB
from tests.doubles.xapi import Pool, Settings, running
from tests.images import content
from tests.xen_pools import SIZE, Site, crashed, sha256, shared_sr

DATA = content(MiB, seed=1)


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[Pool]:
    async with running(tmp_path / "p", Settings()) as pool:
        yield pool
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def site(fake: Pool) -> AsyncIterator[Site]:
    async with shared_sr(fake) as one:
        yield one


async def sent(site: Site, uuid: str) -> None:
    """The host takes all of it, and keeps the disk attached."""

    async def body() -> AsyncIterator[bytes]:
        yield DATA + bytes(SIZE - len(DATA))

    await site.fake.controls.arm(where="import", step="attach", action="leave-plugged")
    await (await site.pool.connection()).streams.upload(uuid, body(), image_format="raw", length=SIZE)
    assert (await site.fake.controls.left())["dom0_vbds"]


async def test_by_the_command_itself(site: Site) -> None:
    async with site.store.write("a", Kind.MANAGED_DISK, token="command-1") as pending:
        disk = await as_pending_disk(pending).make(SIZE)
        await sent(site, disk.id)
        await as_pending_disk(pending).commit()
    assert await site.leftovers() == []
    assert await site.digest("a") == sha256(DATA)


async def test_by_the_next_start_where_the_agent_died_in_between(fake: Pool) -> None:
    async with crashed(fake) as doomed:
        made = await doomed.make("a")
        await sent(doomed, made.version or "")
    async with shared_sr(fake) as site:
        assert (await fake.controls.left())["tasks"] == []
        await reconcile(site.pool)
        assert await site.leftovers() == []
        assert await site.digest("a") == sha256(DATA)
        await site.store.delete("a")


@pytest.mark.parametrize(
    ("whose", "other_config"),
    [
        ("agent-2", {"task_id": "OpaqueRef:gone"}),
        ("agent-1", {}),
        ("agent-1", {"task_id": "OpaqueRef:pending"}),
        ("agent-1", {"task_id": "DummyRef:|1|VDI.copy"}),
        ("nobody", {"task_id": "OpaqueRef:gone"}),
    ],
    ids=[
        "another agent's",
        "not of a task",
        "of a task that goes on",
        "of a task that is in no list",
        "of a disk that we did not make",
    ],
)
async def test_others_are_let_be(fake: Pool, whose: str, other_config: dict[str, str]) -> None:
    async with shared_sr(fake, originator="agent-2") as other, shared_sr(fake) as site:
        if whose == "nobody":
            uuid = await fake.controls.make_vdi((await fake.controls.srs())["shared"], SIZE)
        else:
            uuid = (await (other if whose == "agent-2" else site).make("a")).version or ""
        if other_config.get("task_id") == "OpaqueRef:pending":
            other_config = {"task_id": await site.pool.call("task.create", "somebody's", "")}
        db = fake.world.db
        domain = db.field("host", fake.world.hosts[0], "control_domain")
        vbd = db.add("VBD", VM=domain, VDI=db.by_uuid("VDI", uuid), mode="RO", other_config=other_config)
        await reconcile(site.pool)
        assert db.has("VBD", vbd)
        db.remove("VBD", vbd)
        for task in db.refs("task"):
            db.remove("task", task)
