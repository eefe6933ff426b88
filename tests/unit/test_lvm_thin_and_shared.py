"""Thin volumes, and groups that hosts share, by the commands that LVM is given: both need what not every kernel has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stores.backends.lvm import LvmStore
from stores.backends.lvm_activation import Activation
from stores.backends.lvm_calls import Lvm
from stores.backends.lvm_names import group_of, pending_name, volume_name
from stores.contract import Kind, MiB, Usage
from stores.errors import NotFound, PolicyRefused, StoreUnsupported, Unavailable
from stores.settings import LvmSettings
from stores.to import PrimaryDataStoreTO
from stores.tools.process import ToolFailed, ToolResult, ToolRunner
from stores.transfer.engine import TransferEngine

ROW = {
    "lv_uuid": "u",
    "lv_size": str(8 * MiB),
    "lv_attr": "Vwi-a-tz--",
    "lv_active": "active",
    "lv_device_open": "",
    "segtype": "thin",
    "pool_lv": "tp",
    "data_percent": "25.00",
    "lv_tags": "",
}
POOL = {**ROW, "lv_name": "tp", "lv_attr": "twi-aotz--", "segtype": "thin-pool", "pool_lv": ""}


class Recorder(ToolRunner):
    """Runs nothing. `volumes`: what LVM would report. `refusing`: what it says no to, and in which words."""

    def __init__(self, *volumes: dict[str, str]) -> None:
        super().__init__()
        self.volumes = {row["lv_name"]: row for row in volumes}
        self.refusing: dict[str, str] = {}
        self.said: list[str] = []

    async def run(self, argv: Sequence[str], **more: Any) -> ToolResult:
        command, *arguments = argv[1:]
        if command == "lvs":
            wanted = [each.partition("=")[2] for each in arguments if each.startswith("lv_name=")]
            rows = [row for name, row in self.volumes.items() if not wanted or name in wanted]
            return ToolResult(json.dumps({"report": [{"lv": rows}]}).encode(), b"")
        self.said.append(" ".join(argv[1:]))
        for words, complaint in self.refusing.items():
            if words in self.said[-1]:
                raise ToolFailed("lvm ended", tool="lvm", exit_code=5, stderr=complaint)
        if command == "lvcreate":
            name = arguments[arguments.index("--name") + 1]
            self.volumes[name] = {**ROW, "lv_name": name}
        return ToolResult(b"", b"")

    def of(self, command: str) -> list[str]:
        return [line for line in self.said if line.startswith(command)]


def thin_store(runner: Recorder, engine: TransferEngine) -> LvmStore:
    return LvmStore(Lvm(runner, "vg"), engine, id="pool:p", thin_pool="tp")


async def test_thin_volumes_are_made_in_their_pool_and_are_blank(engine: TransferEngine) -> None:
    runner = Recorder(POOL)
    async with thin_store(runner, engine).write("v", Kind.BLOCK_DEVICE, token="c-1") as pending:
        await pending.make(8 * MiB + 1)
        assert pending.blank
    (made,) = runner.of("lvcreate")
    assert "--virtualsize 8389120b" in made
    assert made.endswith(f"--name {pending_name('v', 'c-1')} --thinpool tp vg")
    assert runner.of("lvremove") == [f"lvremove --yes vg/{pending_name('v', 'c-1')}"]


async def test_a_pool_that_zeroes_nothing_gives_no_blank_volumes(engine: TransferEngine) -> None:
    runner = Recorder({**POOL, "lv_attr": "twi-aot---"})
    async with thin_store(runner, engine).write("v", Kind.BLOCK_DEVICE, token="c-1") as pending:
        await pending.make(8 * MiB)
        assert not pending.blank


async def test_thin_volumes_are_derived(engine: TransferEngine) -> None:
    runner = Recorder(POOL, {**ROW, "lv_name": "t"}, {**ROW, "lv_name": "thick", "segtype": "linear"})
    store = thin_store(runner, engine)
    async with store.present(await store.stat("t"), Kind.BLOCK_DEVICE) as template:
        assert await template.storage.used() == 2 * MiB
        async with store.write("v", Kind.BLOCK_DEVICE, token="c-1") as pending:
            await pending.derive(template, None)
    (made,) = runner.of("lvcreate")
    assert "--snapshot --setactivationskip n" in made
    assert made.endswith("vg/t")
    async with (
        store.present(await store.stat("thick"), Kind.BLOCK_DEVICE) as thick,
        store.write("v", Kind.BLOCK_DEVICE, token="c-1") as pending,
    ):
        with pytest.raises(StoreUnsupported, match="fullCloneFlag"):
            await pending.derive(thick, None)


async def test_usage_is_the_thin_pools(engine: TransferEngine) -> None:
    assert await thin_store(Recorder(POOL), engine).usage() == Usage(used=2 * MiB, capacity=8 * MiB)
    with pytest.raises(NotFound, match="thin_pools"):
        await thin_store(Recorder(), engine).usage()


async def test_pools_are_no_images(engine: TransferEngine) -> None:
    store = thin_store(Recorder(POOL, {**ROW, "lv_name": "v"}), engine)
    assert [info.ref async for info in store.list()] == ["v"]
    with pytest.raises(NotFound):
        await store.stat("tp")
    await store.delete("tp")
    assert (await store.lvm.known("tp")).makes_others


async def test_a_volume_in_use_is_not_deleted(engine: TransferEngine) -> None:
    runner = Recorder({**ROW, "lv_name": "v", "lv_device_open": "open"})
    with pytest.raises(Unavailable, match="in use"):
        await thin_store(runner, engine).delete("v")
    assert runner.said == []


# --------------------------------------------------------------------------------------------------- shared by hosts


async def test_shared_volumes_are_active_on_one_host_while_they_are_used() -> None:
    runner = Recorder({**ROW, "lv_name": "v"})
    activation = Activation(Lvm(runner, "vg", exclusive=True), shared=True)
    async with activation.of("v") as device:
        assert device == Path("/dev/vg/v")
        async with activation.of("v"):
            assert activation.uses("v") == 2
        assert not any("--activate n" in line for line in runner.said)
    assert runner.said[0] == "lvchange --yes --activate ey vg/v"
    assert runner.said[-1] == "lvchange --yes --activate n vg/v"
    assert activation.uses("v") == 0


async def test_what_a_guest_has_open_stays_active() -> None:
    runner = Recorder({**ROW, "lv_name": "v"})
    runner.refusing["--activate n"] = "Logical volume vg/v in use."
    async with Activation(Lvm(runner, "vg", exclusive=True), shared=True).of("v"):
        pass
    assert runner.said[-1].endswith("--activate n vg/v")


async def test_what_another_host_has_cannot_be_used() -> None:
    runner = Recorder({**ROW, "lv_name": "v"})
    runner.refusing["--activate ey"] = "LV locked by other host: vg/v"
    activation = Activation(Lvm(runner, "vg", exclusive=True), shared=True)
    with pytest.raises(Unavailable, match="other host"):
        async with activation.of("v"):
            pass
    assert activation.uses("v") == 0


async def test_one_hosts_volumes_stay_active() -> None:
    runner = Recorder({**ROW, "lv_name": "v"})
    async with Activation(Lvm(runner, "vg"), shared=False).of("v"):
        pass
    assert runner.said == ["lvchange --yes --activate y vg/v"]


def test_which_groups_pools_may_be() -> None:
    settings = LvmSettings(groups=frozenset({"vg"}), thin_pools={"vg": "tp"})
    pool = PrimaryDataStoreTO(uuid="p", poolType="LVM", path="/vg")
    assert group_of(pool, settings, shared=False) == ("vg", "tp")
    with pytest.raises(PolicyRefused, match="thin pool tp"):
        group_of(pool, settings, shared=True)
    with pytest.raises(PolicyRefused, match=r"lvm\.groups"):
        group_of(pool.model_copy(update={"path": "/root"}), settings, shared=False)


def test_snapshots_are_volumes_that_no_command_names() -> None:
    assert volume_name(".storage-agent/frozen/v/s1").startswith("sa_h_")
