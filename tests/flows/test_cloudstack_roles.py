"""CloudStack's commands as JSON, on real pools and stores, in both roles; and that nothing is left of what failed."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.transports.cloudstack.json_codec import encode
from agent.transports.cloudstack.models import WireAnswer, WireCommand
from agent.transports.cloudstack.models_session import PingRoutingCommand, PingStorageCommand
from stores.contract import MiB
from tests.doubles.cloudstack_place import API, STORAGE, TO, Place, standing, template, volume
from tests.doubles.world import world
from tests.images import make_qcow2
from tests.wire.golden_messages import NAMES, message


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Place]:
    async with world() as its_world, standing(its_world, tmp_path / "journal") as found:
        yield found


# ------------------------------------------------------------------------------------------------------- as a host


async def test_a_host_deploys_a_volume_and_lets_it_go(here: Place) -> None:
    """What a server asks for from the pool's connection to the volume's end."""
    image = here.world.root / "images" / "template" / "tmpl" / "2" / "201" / "debian.qcow2"
    here.world.directory()
    image.parent.mkdir(parents=True)
    make_qcow2(image, 4 * MiB)
    joined = await here.host(f"{API}.ModifyStoragePoolCommand", add=True, pool=here.filer())
    assert (joined["class"], joined["result"]) == ("ModifyStoragePoolAnswer", True)
    assert joined["poolInfo"]["capacityBytes"] >= joined["poolInfo"]["availableBytes"] > 0

    source = template(here.images(), "template/tmpl/2/201/debian.qcow2", format="QCOW2")
    copied = await here.host(f"{STORAGE}.CopyCommand", srcTO=source, destTO=template(here.pool(), uuid="t-201"))
    made = copied["newData"][f"{TO}.TemplateObjectTO"]
    assert (copied["class"], copied["result"]) == ("CopyCmdAnswer", True)
    assert (made["path"], made["size"], made["format"]) == ("t-201", 4 * MiB, "QCOW2")
    assert made["physicalSize"] == (here.world.root / "pool" / "t-201").stat().st_size
    assert "imageDataStore" not in made

    clone = await here.host(
        f"{STORAGE}.CopyCommand",
        srcTO=template(here.pool(), "t-201"),
        destTO=volume(here.pool(), uuid="v-7", size=8 * MiB, format="QCOW2"),
    )
    assert clone["newData"][f"{TO}.VolumeObjectTO"]["size"] == 8 * MiB

    grown = await here.host(f"{API}.storage.ResizeVolumeCommand", path="v-7", pool=here.filer(), newSize=16 * MiB)
    assert (grown["class"], grown["result"], grown["newSize"]) == ("ResizeVolumeAnswer", True, 16 * MiB)

    stats = await here.host(
        f"{API}.GetVolumeStatsCommand", volumeUuids=["v-7", "no"], poolUuid="pool", poolType="Filesystem"
    )
    assert stats["volumeStats"]["v-7"]["virtualSize"] == 16 * MiB
    assert list(stats["volumeStats"]) == ["v-7"]
    used = await here.host(
        f"{API}.GetStorageStatsCommand", id="pool", pooltype="Filesystem", localPath=here.filer()["path"]
    )
    assert (used["result"], used["capacityBytes"] > used["usedBytes"] > 0) == (True, True)

    for _ in range(2):  # deleting is idempotent
        deleted = await here.host(f"{STORAGE}.DeleteCommand", data=volume(here.pool(), "v-7"))
        assert deleted == {
            "class": "Answer",
            "result": True,
            "contextMap": {},
            "wait": 0,
            "bypassHostMaintenance": False,
        }
    assert here.left() == ["t-201"]
    assert (await here.host(f"{API}.DeleteStoragePoolCommand", _pool=here.filer()))["result"]


async def test_a_volume_moves_between_pools(here: Place) -> None:
    created = await here.host(f"{STORAGE}.CreateObjectCommand", data=volume(here.pool(), uuid="v-1", size=4 * MiB))
    assert (created["class"], created["result"]) == ("CreateObjectAnswer", True)
    assert created["data"][f"{TO}.VolumeObjectTO"]["path"] == "v-1"
    content = hashlib.sha256((here.world.root / "pool" / "v-1").read_bytes()).hexdigest()
    moved = await here.host(
        f"{API}.storage.MigrateVolumeCommand",
        volumePath="v-1",
        sourcePool=here.filer(),
        pool=here.filer("other"),
        volumeId=1,
    )
    assert (moved["class"], moved["result"], moved["volumePath"]) == ("MigrateVolumeAnswer", True, "v-1")
    assert (here.left(), here.left("other")) == ([], ["v-1"])
    assert hashlib.sha256((here.world.root / "other" / "v-1").read_bytes()).hexdigest() == content


async def test_a_clone_of_a_template_that_is_gone_asks_for_it(here: Place) -> None:
    answer = await here.host(
        f"{STORAGE}.CopyCommand", srcTO=template(here.pool(), "gone"), destTO=volume(here.pool(), uuid="v")
    )
    assert (answer["class"], answer["result"], answer["details"]) == (
        "CopyCmdAnswer",
        False,
        "request template reload",
    )
    assert here.left() == []


async def test_a_pool_that_cannot_be_used_is_not_connected(here: Place) -> None:
    away = {**here.filer(), "path": "/etc"}
    answer = await here.host(f"{API}.ModifyStoragePoolCommand", add=True, pool=away)
    assert (answer["class"], answer["result"]) == ("ModifyStoragePoolAnswer", False)
    assert answer["details"].startswith("PolicyRefused: ")


async def test_what_a_host_is_asked_about_itself(here: Place) -> None:
    assert (await here.host(f"{API}.CheckHealthCommand"))["result"]
    here.healthy[0] = False
    assert not (await here.host(f"{API}.CheckHealthCommand"))["result"]
    network = {"physicalNetworkId": 200, "privateNetworkName": "cloudbr0"}
    known = await here.host(f"{API}.CheckNetworkCommand", networkInfoList=[network])
    assert (known["class"], known["result"], known["_reconnect"]) == ("CheckNetworkAnswer", True, False)
    unknown = await here.host(f"{API}.CheckNetworkCommand", networkInfoList=[network, {"guestNetworkName": "cloudbr9"}])
    assert not unknown["result"]
    assert "cloudbr9" in unknown["details"]
    stats = await here.host(f"{API}.GetHostStatsCommand", hostId=7)
    assert (stats["class"], stats["hostStats"]["hostId"]) == ("GetHostStatsAnswer", 7)
    assert stats["hostStats"]["totalMemoryKBs"] > 0


def test_a_host_introduces_itself(here: Place) -> None:
    (startup,) = json.loads(encode(here.routing.introduction("127.0.0.1")))
    fields = startup[f"{API}.StartupRoutingCommand"]
    assert {key: fields[key] for key in ("type", "guid", "resourceName", "name", "dataCenter", "pod", "cluster")} == {
        "type": "Routing",
        "guid": "0c6f1c7e-LibvirtComputingResource",
        "resourceName": "LibvirtComputingResource",
        "name": "kvm7",
        "dataCenter": "1",
        "pod": "2",
        "cluster": "3",
    }
    assert (fields["cpus"], fields["memory"], fields["hypervisorType"]) == (8, 2**35, "KVM")
    assert fields["hostDetails"]["Host.OS"] == "Debian"
    assert (fields["privateIpAddress"], fields["privateNetmask"]) == ("127.0.0.1", "255.0.0.0")
    ping = here.routing.ping(7)
    assert isinstance(ping, PingRoutingCommand)
    assert b"_hostVmStateReport" not in encode([ping])


# ------------------------------------------------------------------------------------------ as a secondary storage VM


async def test_a_secondary_storage_vm_sets_up_lists_and_digests(here: Place) -> None:
    here.world.directory()
    (here.world.root / "images" / "template").mkdir()
    (here.world.root / "images" / "template" / "a").write_bytes(b"1234")
    ready = await here.ssvm(f"{API}.SecStorageSetupCommand", store=here.images())
    assert (ready["class"], ready["result"]) == ("SecStorageSetupAnswer", True)
    listing = await here.ssvm(f"{STORAGE}.browser.ListDataStoreObjectsCommand", store=here.images(), path="/template/")
    assert (listing["class"], listing["names"], listing["sizes"]) == ("ListDataStoreObjectsAnswer", ["a"], [4])
    digest = await here.ssvm(f"{API}.ComputeChecksumCommand", store=here.images(), templatePath="template/a")
    assert (digest["result"], digest["details"]) == (True, hashlib.md5(b"1234").hexdigest())
    gone = await here.ssvm(f"{API}.ComputeChecksumCommand", store=here.images(), templatePath="template/b")
    assert (gone["result"], gone["details"].partition(":")[0]) == (False, "NotFound")


async def test_a_store_that_is_not_there_is_not_set_up(here: Place) -> None:
    store = {"com.cloud.agent.api.to.NfsTO": {"_url": "nfs://192.0.2.1/export"}}
    answer = await here.ssvm(f"{API}.SecStorageSetupCommand", store=store)
    assert (answer["class"], answer["result"]) == ("SecStorageSetupAnswer", False)


async def test_a_half_known_store_is_not_listed(here: Place) -> None:
    """An incomplete list would make the server delete or fetch what it does not find in it."""
    answer = await here.ssvm(f"{API}.storage.ListTemplateCommand", store=here.images())
    assert (answer["class"], answer["result"]) == ("ListTemplateAnswer", False)
    assert "template.properties" in answer["details"]


async def test_a_download_that_fails_says_so_when_it_is_asked_for(here: Place) -> None:
    fields = {
        "url": "http://192.0.2.1/debian.qcow2",  # not an allowed address: refused before anything is contacted
        "_store": here.images(),
        "installPath": "template/tmpl/2/201",
        "id": 201,
        "format": "QCOW2",
        "resourceType": "TEMPLATE",
    }
    began = await here.ssvm(f"{STORAGE}.DownloadCommand", **fields)
    assert (began["class"], began["downloadStatus"]) == ("DownloadAnswer", "DOWNLOAD_IN_PROGRESS")
    job = began["jobId"]
    status = began
    while status["downloadStatus"] == "DOWNLOAD_IN_PROGRESS":
        await asyncio.sleep(0.01)
        status = await here.ssvm(f"{STORAGE}.DownloadProgressCommand", jobId=job, request="GET_STATUS", **fields)
    assert (status["downloadStatus"], status["result"], status["jobId"]) == ("DOWNLOAD_ERROR", False, job)
    assert status["errorString"]
    again = await here.ssvm(f"{STORAGE}.DownloadProgressCommand", jobId=job, request="GET_OR_RESTART", **fields)
    assert again["jobId"] != job
    aborted = await here.ssvm(f"{STORAGE}.DownloadProgressCommand", jobId=again["jobId"], request="ABORT", **fields)
    assert aborted["downloadStatus"] in ("ABANDONED", "DOWNLOAD_ERROR")
    unknown = await here.ssvm(f"{STORAGE}.DownloadProgressCommand", jobId="x", request="PURGE", **fields)
    assert (unknown["downloadStatus"], unknown["result"]) == ("DOWNLOAD_ERROR", False)


def test_a_secondary_storage_vm_introduces_itself(here: Place) -> None:
    (startup,) = json.loads(encode(here.secondary.introduction("127.0.0.1")))
    fields = startup[f"{API}.StartupSecondaryStorageCommand"]
    assert (fields["guid"], fields["iqn"], fields["type"]) == (
        "0c6f1c7e-NfsSecondaryStorageResource",
        "NoIqn",
        "SecondaryStorage",
    )
    assert isinstance(here.secondary.ping(8), PingStorageCommand)


# ------------------------------------------------------------------------------------------------------ in any role


@pytest.mark.parametrize("role", ["routing", "secondary"])
async def test_every_golden_command_is_answered_and_no_secret_comes_back(here: Place, role: str) -> None:
    """None of the stores is there: what is not refused at once fails, and always in an answer of the right class."""
    for name in NAMES:
        command = message(name)
        if not isinstance(command, WireCommand) or "s3" in name.lower() or "S3TO" in repr(command):
            continue
        answer: WireAnswer = await getattr(here, role).execute(command, within_s=5)
        assert type(answer).__name__ in (type(command).answered_by.__name__, "UnsupportedAnswer"), name
        text = encode([answer]).decode()
        assert not any(secret in text for secret in ("ch4p", "p%3Dss", "t0k3n", "p4ss", "s3cr3t")), name
    assert here.left() == []
