"""Backups between image stores: the same objects and manifests, restored from where they are now."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from hypervisors.backups.manifest import BrokenChain
from hypervisors.contract import HypervisorType
from hypervisors.explaining import How
from hypervisors.verbs import Copy
from stores.errors import AlreadyExists, ChecksumMismatch, InvalidReference
from stores.to import DataTO, SnapshotObjectTO
from tests.doubles.backups import Lab, ref_of
from tests.doubles.shelf import Shelf
from tests.doubles.world import Phases


def carried_to(shelf: Shelf, chain: Lab) -> Lab:
    """The same, with a directory for its backups."""
    return replace(chain, to=shelf.here.directory())


async def carry(
    chain: Lab, source: SnapshotObjectTO, target: SnapshotObjectTO, progress: Phases | None = None
) -> DataTO:
    return (await chain.here.operations.copy(chain.here.call("c-carry", progress), Copy(source, target))).data


async def test_backups_are_restored_from_where_they_were_carried(shelf: Shelf, chain: Lab) -> None:
    there = carried_to(shelf, chain)
    for name, parent in (("monday", None), ("tuesday", ref_of("monday"))):
        for _ in range(2):  # again is success
            made = await carry(chain, chain.remote(name), there.remote(name))
            assert isinstance(made, SnapshotObjectTO)
            assert (made.path, made.parentSnapshotPath) == (ref_of(name), parent)
            assert made.physicalSize == (shelf.here.root / "images" / ref_of(name)).stat().st_size
    for name in ("monday", "tuesday"):
        assert await there.restored(name) == chain.contents[name]


async def test_a_delta_without_what_it_builds_on_is_carried_but_not_restored(shelf: Shelf, chain: Lab) -> None:
    there = carried_to(shelf, chain)
    await carry(chain, chain.remote("tuesday"), there.remote("tuesday"))
    with pytest.raises(BrokenChain):
        await there.restored("tuesday")


async def test_a_damaged_backup_is_not_carried(shelf: Shelf, chain: Lab) -> None:
    client: Any = shelf.seaweed.client()
    client.put_object(Bucket=shelf.bucket, Key=ref_of("monday"), Body=b"other")
    client.close()
    with pytest.raises(ChecksumMismatch):
        await carry(chain, chain.remote("monday"), carried_to(shelf, chain).remote("monday"))
    assert shelf.here.files("images") == set()


async def test_a_backup_keeps_its_path_and_replaces_no_other(shelf: Shelf, chain: Lab) -> None:
    there = carried_to(shelf, chain)
    with pytest.raises(InvalidReference):
        await carry(chain, chain.remote("monday"), there.remote("other"))
    with pytest.raises(BrokenChain):
        await carry(chain, chain.remote("nobody"), there.remote("nobody"))
    assert shelf.here.files("images") == set()
    await chain.snapshot("wednesday")
    await there.back_up("wednesday", name_there="monday")
    before = (shelf.here.root / "images" / ref_of("monday")).read_bytes()
    with pytest.raises(AlreadyExists):
        await carry(chain, chain.remote("monday"), there.remote("monday"))
    assert (shelf.here.root / "images" / ref_of("monday")).read_bytes() == before


@pytest.mark.parametrize("phase", ["send", "publish"])
async def test_a_cancelled_copy_leaves_nothing(shelf: Shelf, chain: Lab, phase: str) -> None:
    progress = Phases()
    progress.wanted = phase
    target = carried_to(shelf, chain).remote("monday")
    going = asyncio.create_task(carry(chain, chain.remote("monday"), target, progress))
    await progress.reached.wait()
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    assert shelf.here.files("images") == set()


async def test_it_is_explained(shelf: Shelf) -> None:
    source = SnapshotObjectTO(path=ref_of("monday"), dataStore=shelf.s3())
    request = Copy(source, source.model_copy(update={"dataStore": shelf.here.directory()}))
    told = shelf.here.operations.explain(HypervisorType.KVM, request)
    assert (told.operation, told.how, told.refusal) == ("copy a backup between image stores", How.IN_PLACE, None)
