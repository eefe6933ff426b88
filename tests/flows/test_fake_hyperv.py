"""Whether the double of a Hyper-V host is honest: clients and readers that are not ours, and Hyper-V's rules."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pypsrp.client import Client
from pypsrp.exceptions import AuthenticationError, WSManFaultError
from pypsrp.powershell import PowerShell, RunspacePool
from pypsrp.wsman import WSMan

from hypervisors.hyperv import jobs, texts
from hypervisors.hyperv.checkpoints import remove_checkpoint
from hypervisors.hyperv.psrp import PsrpPort
from stores.contract import MiB
from stores.errors import StorageError
from tests.doubles.hyperv import Host
from tests.doubles.hyperv.host import PASSWORD, USER, running
from tests.doubles.hyperv.scripts import KNOWN, PROBE, digest
from tests.doubles.hyperv.vhds import says_sparse
from tests.doubles.hyperv.wsman import MAX_SHELLS, TIMED_OUT
from tests.hyperv import child, disk, dynamic
from tests.laid_out import libvhdi

T = TypeVar("T")


# ------------------------------------------------------------------------------------------------- pypsrp, as it comes


def told(host: Host, **more: Any) -> dict[str, Any]:
    return {
        "port": host.endpoint.port,
        "username": USER,
        "password": PASSWORD,
        "cert_validation": str(host.endpoint.ca_file),
        "no_proxy": True,
        **more,
    }


async def in_a_thread(work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work)


@pytest.mark.parametrize("auth", ["negotiate", "ntlm"])
async def test_its_client_runs_powershell(hyperv: Host, auth: str) -> None:
    def work() -> tuple[str, bool]:
        with Client("localhost", **told(hyperv, auth=auth)) as client:
            output, _, failed = client.execute_ps(PROBE)
            return output, failed

    assert await in_a_thread(work) == ("5.1.20348.1", False)


async def test_its_client_sees_errors(hyperv: Host) -> None:
    def work() -> tuple[bool, list[str]]:
        with Client("localhost", **told(hyperv)) as client:
            _, streams, failed = client.execute_ps("Get-Unheard-Of")
            return failed, [str(record.fq_error) for record in streams.error]

    assert await in_a_thread(work) == (True, ["UnknownScript"])
    hyperv.scripts.unknown.clear()


async def test_its_client_is_refused_without_the_password(hyperv: Host) -> None:
    def work() -> None:
        with Client("localhost", **told(hyperv, password="something else")) as client:
            client.execute_ps(PROBE)

    with pytest.raises(AuthenticationError):
        await in_a_thread(work)


async def test_its_runspace_pool_keeps_a_shell_and_waits_for_output(hyperv: Host) -> None:
    hyperv.scripts.slow_s = 1.5

    def work() -> list[str]:
        with WSMan("localhost", operation_timeout=1, **told(hyperv)) as wsman, RunspacePool(wsman) as pool:
            outputs = []
            for _ in range(2):
                script = PowerShell(pool)
                script.add_script(texts.text("get-operations")).add_parameter("Json", "{}")
                outputs += script.invoke()
            return outputs

    assert await in_a_thread(work) == ['{"ok": true, "result": {"operations": []}}'] * 2
    assert hyperv.faults.messages.count("Create") == 1
    assert TIMED_OUT == 0x80338029


async def test_its_client_can_stop_a_script(hyperv: Host) -> None:
    hyperv.scripts.slow_s = 60

    def work() -> str:
        with WSMan("localhost", **told(hyperv)) as wsman, RunspacePool(wsman) as pool:
            script = PowerShell(pool)
            script.add_script(texts.text("get-operations")).add_parameter("Json", "{}")
            script.begin_invoke()
            script.stop()
            return str(hyperv.shells.running)

    assert await in_a_thread(work) == "0"


async def test_there_are_only_so_many_shells(tmp_path: Path) -> None:
    async with running(tmp_path, roots={"D:\\pool": tmp_path}, most_shells=1) as host:

        def work() -> int:
            with WSMan("localhost", **told(host)) as one, RunspacePool(one), WSMan("localhost", **told(host)) as two:
                with pytest.raises(WSManFaultError) as caught, RunspacePool(two):
                    pass
                return int(caught.value.code)

        assert await in_a_thread(work) == MAX_SHELLS


async def test_a_text_that_changed_fails_the_test(tmp_path: Path) -> None:
    async def a_test() -> None:
        async with running(tmp_path, roots={"D:\\pool": tmp_path}) as host:

            def work() -> None:
                with Client("localhost", **told(host)) as client:
                    client.execute_ps(texts.text("get-host") + "\n")

            await in_a_thread(work)

    with pytest.raises(AssertionError, match="does not know"):
        await a_test()


def test_every_script_is_known() -> None:
    assert {name: digest(texts.text(name)) for name in texts.names()} == KNOWN


# -------------------------------------------------------------------------------------------------------- Hyper-V's rules


def seen_by_libvhdi(folder: Path, *names: str) -> str:
    """The digest of what it reads in the last of a chain."""
    with libvhdi([folder / name for name in names]) as file:
        return sha256(file.read_buffer_at_offset(file.get_media_size(), 0)).hexdigest()


async def refused(call: Any) -> str:
    with pytest.raises(StorageError) as caught:
        await call
    return caught.value.kind


async def made(hyperv: Host, port: PsrpPort, name: str = "base.vhdx") -> Any:
    vhd = await jobs.make_disk(port, dynamic(name, 4 * MiB), operation=name.removesuffix(".vhdx"))
    await hyperv.model.vhds.write(disk(name), MiB + 512, name.encode() * 100)
    return vhd


def attached(path: str, vm: str = "vm", controller: str = "SCSI") -> dict[str, Any]:
    return {"vm": vm, "path": path, "controller": controller, "number": None, "location": None}


async def test_disks_of_all_kinds_are_real(hyperv: Host, powershell: PsrpPort, tmp_path: Path) -> None:
    vhd = await made(hyperv, powershell)
    assert (vhd["kind"], vhd["size"], vhd["parent"], vhd["attached"]) == ("Dynamic", 4 * MiB, "", False)
    below = await jobs.make_disk(powershell, child("child.vhdx", "base.vhdx"), operation="c")
    assert (below["kind"], below["parent"], below["disk_id"]) == ("Differencing", disk("base.vhdx"), vhd["disk_id"])
    await hyperv.model.vhds.write(disk("child.vhdx"), 0, b"child" * 100)
    fixed = await jobs.make_disk(powershell, {**dynamic("fixed.vhdx", 4 * MiB), "kind": "Fixed"}, operation="f")
    assert (fixed["kind"], fixed["file_size"] >= 4 * MiB) == ("Fixed", True)
    for names in (("base.vhdx",), ("base.vhdx", "child.vhdx"), ("fixed.vhdx",)):
        content = await hyperv.model.vhds.content(disk(names[-1]))
        assert seen_by_libvhdi(tmp_path / "pool", *names) == sha256(content).hexdigest()
    grown = await powershell.run("resize-vhd", {"path": disk("base.vhdx"), "size": 6 * MiB})
    assert grown["size"] == 6 * MiB
    assert await refused(powershell.run("resize-vhd", {"path": disk("base.vhdx"), "size": MiB})) == "HypervFailure"


async def test_a_child_whose_parent_was_written_to(hyperv: Host, powershell: PsrpPort) -> None:
    await made(hyperv, powershell)
    await jobs.make_disk(powershell, child("child.vhdx", "base.vhdx"), operation="c")
    path = {"path": disk("child.vhdx")}
    assert await powershell.run("test-vhd", path) == {"valid": True, "problem": None}
    await hyperv.model.vhds.write(disk("base.vhdx"), 0, b"changed")
    assert (await powershell.run("test-vhd", path))["valid"] is False
    anew = {**path, "parent": disk("base.vhdx")}
    assert await refused(powershell.run("set-vhd-parent", {**anew, "ignore_mismatch": False})) == "HypervFailure"
    await powershell.run("set-vhd-parent", {**anew, "ignore_mismatch": True})
    assert (await powershell.run("test-vhd", path))["valid"] is True
    assert await refused(powershell.run("test-vhd", {"path": disk("none.vhdx")})) == "NotFound"


async def test_disks_of_a_machine_that_runs_are_in_use(hyperv: Host, powershell: PsrpPort) -> None:
    machine = hyperv.model.add_machine("vm")
    await made(hyperv, powershell)
    await jobs.make_disk(powershell, child("child.vhdx", "base.vhdx"), operation="c")
    place = await powershell.run("attach-disk", attached(disk("child.vhdx")))
    assert place == {"controller": "SCSI", "number": 0, "location": 0, "path": disk("child.vhdx")}
    machine.state = "Running"
    assert await powershell.run("attach-disk", attached(disk("child.vhdx"))) == place
    for name in ("child.vhdx", "base.vhdx"):
        assert (await powershell.run("get-vhd", {"path": disk(name)}))["attached"] is True
        assert await refused(powershell.run("delete-file", {"path": disk(name)})) == "ImageLocked"
        assert await refused(powershell.run("resize-vhd", {"path": disk(name), "size": 8 * MiB})) == "ImageLocked"
    merging = jobs.merge(powershell, {"path": disk("child.vhdx"), "destination": disk("base.vhdx")}, operation="m")
    assert await refused(merging) == "ImageLocked"
    assert await powershell.run("detach-disk", {"vm": "VM", "path": disk("child.vhdx")}) == {"detached": True}
    assert await powershell.run("detach-disk", {"vm": "vm", "path": disk("child.vhdx")}) == {"detached": False}
    assert await powershell.run("delete-file", {"path": disk("child.vhdx")}) == {"deleted": True}
    assert await powershell.run("delete-file", {"path": disk("child.vhdx")}) == {"deleted": False}


async def test_places_of_drives(hyperv: Host, powershell: PsrpPort, tmp_path: Path) -> None:
    machine = hyperv.model.add_machine("vm", generation=1)
    await made(hyperv, powershell)
    (tmp_path / "pool" / "a.iso").write_bytes(b"iso")
    for _ in range(2):
        assert await powershell.run("set-dvd", {"vm": "vm", "path": disk("a.iso")}) == {"path": disk("a.iso")}
    told = await powershell.run("get-disks", {"vm": "vm"})
    assert told["dvd_drives"] == [{"controller": "IDE", "number": 0, "location": 0, "path": disk("a.iso")}]
    taken = {**attached(disk("base.vhdx"), controller="IDE"), "number": 0, "location": 0}
    assert await refused(powershell.run("attach-disk", taken)) == "HypervFailure"
    machine.state = "Running"
    assert await refused(powershell.run("attach-disk", {**taken, "location": 1})) == "HypervRefused"
    machine.state = "Off"
    assert (await powershell.run("attach-disk", {**taken, "location": 1}))["location"] == 1
    assert await powershell.run("set-dvd", {"vm": "vm", "path": None}) == {"path": None}
    assert await refused(powershell.run("set-dvd", {"vm": "vm", "path": disk("none.iso")})) == "NotFound"
    assert await refused(powershell.run("get-disks", {"vm": "another"})) == "NotFound"


async def test_checkpoints_rename_disks_and_merge_later(hyperv: Host, powershell: PsrpPort, tmp_path: Path) -> None:
    machine = hyperv.model.add_machine("vm", state="Running")
    await made(hyperv, powershell)
    await powershell.run("attach-disk", attached(disk("base.vhdx")))
    asked = {"vm": "vm", "name": "storage-agent one"}
    checkpoint = await powershell.run("new-checkpoint", asked)
    assert [one["path"] for one in checkpoint["disks"]] == [disk("base.vhdx")]
    assert await powershell.run("new-checkpoint", asked) == checkpoint
    (drive,) = (await powershell.run("get-disks", {"vm": "vm"}))["disks"]
    assert drive["path"].startswith(disk("base_"))
    assert drive["path"].endswith(".avhdx")
    await hyperv.model.vhds.write(drive["path"], 3 * MiB, b"written since")
    content = await hyperv.model.vhds.content(drive["path"])
    second = await powershell.run("new-checkpoint", {"vm": "vm", "name": "storage-agent two"})
    assert (second["parent"], second["disks"][0]["path"]) == (checkpoint["id"], drive["path"])

    hyperv.model.let_jobs_end.clear()
    removing = asyncio.create_task(remove_checkpoint(powershell, "vm", checkpoint["id"], poll_s=0.01))
    while machine.merging == 0:
        await asyncio.sleep(0.01)
    told = await powershell.run("get-checkpoints", {"vm": "vm"})
    assert (told["merging"], [one["name"] for one in told["checkpoints"]]) == (True, ["storage-agent two"])
    assert not removing.done()
    hyperv.model.let_jobs_end.set()
    await removing
    await remove_checkpoint(powershell, "vm", second["id"], poll_s=0.01)
    await remove_checkpoint(powershell, "vm", second["id"], poll_s=0.01)
    (drive,) = (await powershell.run("get-disks", {"vm": "vm"}))["disks"]
    assert drive["path"] == disk("base.vhdx")
    assert [file.name for file in (tmp_path / "pool").iterdir()] == ["base.vhdx"]
    assert seen_by_libvhdi(tmp_path / "pool", "base.vhdx") == sha256(content).hexdigest()


async def test_going_back_to_a_checkpoint(hyperv: Host, powershell: PsrpPort, tmp_path: Path) -> None:
    machine = hyperv.model.add_machine("vm")
    await made(hyperv, powershell)
    await powershell.run("attach-disk", attached(disk("base.vhdx")))
    before = await hyperv.model.vhds.content(disk("base.vhdx"))
    checkpoint = await powershell.run("new-checkpoint", {"vm": "vm", "name": "one"})
    await hyperv.model.vhds.write(machine.disks[0].path or "", 0, b"regretted")
    asked = {"vm": "vm", "checkpoint": checkpoint["id"]}
    machine.state = "Running"
    assert await refused(powershell.run("restore-checkpoint", asked)) == "HypervRefused"
    machine.state = "Off"
    for _ in range(2):
        await powershell.run("restore-checkpoint", asked)
    assert await hyperv.model.vhds.content(machine.disks[0].path or "") == before
    assert len(list((tmp_path / "pool").iterdir())) == 2
    missing = {**asked, "checkpoint": "00000000-0000-0000-0000-000000000000"}
    assert await refused(powershell.run("restore-checkpoint", missing)) == "NotFound"


async def test_facts_of_files(hyperv: Host, powershell: PsrpPort) -> None:
    await made(hyperv, powershell)
    told = await powershell.run("get-file", {"path": disk("base.vhdx")})
    assert (told["exists"], told["sparse"], told["read_only"]) == (True, False, False)
    assert 0 < told["free"] <= told["total"]
    outside = await powershell.run("get-file", {"path": "X:\\elsewhere.vhdx"})
    assert (outside["exists"], outside["free"]) == (False, None)


@pytest.mark.parametrize(("attributes", "sparse"), [(0x20, False), (0x220, True), (0x200, True)])
def test_sparse_files_are_told_by_samba_s_attribute(attributes: int, sparse: bool) -> None:
    assert says_sparse(f"0x{attributes:x}".encode() + b"\0" + bytes(40)) is sparse
    assert says_sparse(_version_5(attributes)) is sparse


def _version_5(attributes: int) -> bytes:
    return struct.pack("<2xHIII", 5, 5, 0x11, attributes) + bytes(24)
