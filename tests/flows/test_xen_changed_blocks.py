"""What changed between snapshots on the fake pool, also where the earlier one has no content any more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hypervisors.xen.changed_blocks import GRAIN, changed_blocks
from hypervisors.xen.errors import XapiFailure
from stores.contract import KiB, MiB
from tests.doubles.xapi import Settings, running
from tests.xapi_agent import Agent, agent


@pytest.fixture
async def ours(tmp_path: Path) -> AsyncIterator[Agent]:
    async with running(tmp_path / "p", Settings(data_destroy_wait_s=0.0)) as pool, agent(pool) as one:
        yield one


async def test_between_two_snapshots(ours: Agent, tmp_path: Path) -> None:
    disk = await ours.disk()
    number = await ours.client.call("VDI.get_uuid", disk)
    await ours.client.call("VDI.enable_cbt", disk)
    first = await ours.client.call("VDI.snapshot", disk)
    (tmp_path / "data").write_bytes(b"x" * (100 * KiB))
    for offset in (0, 3 * MiB + 512):
        await ours.pool.controls.write(number, offset, str(tmp_path / "data"))
    second = await ours.client.call("VDI.snapshot", disk)
    await ours.client.call("VDI.data_destroy", first)
    changed = await changed_blocks(ours.client, first, second)
    assert changed is not None
    assert list(changed) == [(0, 2 * GRAIN), (3 * MiB, 2 * GRAIN)]
    assert list(await changed_blocks(ours.client, second, second) or ()) == []


async def test_where_nobody_can_tell(ours: Agent) -> None:
    one, other = await ours.disk(), await ours.disk()
    assert await changed_blocks(ours.client, one, other) is None, "neither is tracked"
    for disk in (one, other):
        await ours.client.call("VDI.enable_cbt", disk)
    assert await changed_blocks(ours.client, one, other) is None, "they have nothing in common"
    with pytest.raises(XapiFailure, match="HANDLE_INVALID"):
        await changed_blocks(ours.client, "OpaqueRef:none", other)
