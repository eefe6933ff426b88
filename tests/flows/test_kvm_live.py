"""Backups of a volume that a guest writes to all the while: with a real libvirt, guest, object store, and daemon."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from signal import SIGKILL
from typing import Any

import libvirt
import pytest

from hypervisors.kvm.backup_xml import agent_answers
from hypervisors.kvm.quiet import FROZEN
from tests.doubles.backup_site import BackupSite, backup_site, until
from tests.doubles.disk_images import qemu_img
from tests.kvm_live import BLOCK, BLOCKS, VM, Live, live_guest, moment
from tests.kvm_machines import Stage
from tests.servers import S3Server


@pytest.fixture(scope="module")
def site(seaweed: S3Server, stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackupSite]:
    directory = tmp_path_factory.mktemp("live") / "cache"
    with backup_site(seaweed, directory, libvirt=stage.lab.daemon.uri) as made:
        yield made


@pytest.fixture
def live(site: BackupSite, stage: Stage) -> Iterator[Live]:
    with live_guest(site, stage) as made:
        yield made


def test_a_full_backup_is_of_one_moment(live: Live) -> None:
    live.begin()
    before = live.written()
    answer = live.site.do(live.back_up("s1"))
    after = live.written()
    assert answer["newData"]["path"] == "snapshots/v/s1"
    live.nothing_left()
    live.goes_on()
    assert before <= live.restored("s1") <= after
    assert live.site.do(live.back_up("s1"))["newData"] == answer["newData"]  # the same again
    live.nothing_left()


def test_incremental_backups_are_of_what_changed(live: Live) -> None:
    live.begin()
    whole = live.site.do(live.back_up("s1"))["newData"]["physicalSize"]
    moments = []
    for name, parent in (("s2", "s1"), ("s3", "s2")):
        live.goes_on()
        moments.append(live.written())
        answer = live.site.do(live.back_up(name, parent))
        assert answer.get("details") is None
        assert answer["newData"]["parentSnapshotPath"] == f"snapshots/v/{parent}"
        assert BLOCKS * BLOCK <= answer["newData"]["physicalSize"] < 0.7 * whole
        live.nothing_left()
    assert moments[0] <= live.restored("s2") <= moments[1] <= live.restored("s3")


@pytest.mark.parametrize("how", ["cut", "stall"])
def test_a_store_that_fails_in_the_middle(live: Live, how: str) -> None:
    live.begin()
    live.site.line.rate_up = 1_000_000
    limit: dict[str, Any] = {"deadline_s": 3} if how == "stall" else {}
    live.site.begin(live.back_up("s1", id=f"c-{how}", **limit))
    until(live.job)
    live.goes_on()
    if how == "cut":
        live.site.line.cut_after = 0
    answer = live.ended(f"c-{how}")
    assert answer["state"] == "failed"
    live.nothing_left()
    live.goes_on()
    live.site.line.cut_after = live.site.line.rate_up = None
    live.site.do(live.back_up("s1"))
    live.restored("s1")


def test_the_guest_comes_before_the_store(live: Live) -> None:
    """Its job is ended while what was begun in the store is still to be removed: that says nothing."""
    live.begin()
    live.site.line.rate_up = 100_000
    live.site.begin(live.back_up("s1", id="c-first"))
    before = live.site.line.bytes_up
    until(lambda: live.site.line.bytes_up > before + 4 * BLOCK)
    assert live.job()
    live.site.line.stall_after = 0
    cancelling = live.site.host.begin("commands", "cancel", "c-first")
    until(lambda: not live.job())
    live.goes_on()
    assert "finished_at" not in live.shown("c-first")
    live.site.line.stall_after = None
    assert live.ended("c-first")["state"] == "cancelled"
    cancelling.communicate()
    live.nothing_left()
    live.site.line.rate_up = None
    until(lambda: not live.site.unfinished())
    live.site.do(live.back_up("s1"))
    live.restored("s1")


def test_the_agent_is_killed_in_the_middle(live: Live) -> None:
    live.begin()
    live.site.do(live.back_up("s1"))
    live.site.line.rate_up = 100_000
    live.site.begin(live.back_up("s2", "s1", id="c-killed"))
    until(live.job)
    live.site.host.stop(SIGKILL)
    live.goes_on()
    assert live.job()  # nobody is there to end it
    live.site.line.rate_up = None
    live.site.host.start()
    until(lambda: not live.job() and not live.domain.listAllCheckpoints())
    live.nothing_left()
    live.goes_on()
    assert live.site.do(live.back_up("s2", "s1")).get("details") is None  # what was known is not lost
    live.restored("s2")


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.4])
def test_the_agent_is_killed_while_it_makes_a_snapshot(live: Live, after_s: float) -> None:
    live.begin()
    command = {"command": "CreateObject", "data": live.snapshot("s1"), "id": f"c-{after_s}"}
    live.site.begin(command)
    time.sleep(after_s)
    live.site.host.stop(SIGKILL)
    live.site.host.start()
    until(lambda: not live.job() and not live.domain.listAllCheckpoints())
    live.nothing_left()
    live.goes_on()
    if live.ended(f"c-{after_s}")["state"] != "succeeded":
        live.site.do({**command, "id": f"c-again-{after_s}"})
    live.site.do(live.site.back_up(live.snapshot("s1"), "s1"))
    live.restored("s1")


def test_a_raw_volume(live: Live) -> None:
    live.begin("RAW")
    command = live.back_up("s1")
    live.site.do(command)
    live.restored("s1")
    answer = live.site.do(live.back_up("s2", "s1"))
    assert "full backup" in answer["details"]
    live.restored("s2")
    live.nothing_left()


def test_a_snapshot_of_a_running_guest_and_back(live: Live) -> None:
    live.begin()
    before = live.written()
    live.site.do({"command": "CreateObject", "data": live.snapshot("s1")})
    after = live.written()
    live.nothing_left()
    live.goes_on()
    revert = {"command": "RevertSnapshot", "data": live.snapshot("s1")}
    code, answer = live.site.submit(revert)
    assert (code, answer["error"]["kind"]) == (3, "ImageLocked")
    live.goes_on()
    live.site.do(live.site.back_up(live.snapshot("s1"), "s1"))
    assert before <= live.restored("s1") <= after
    live.end()
    live.site.do(revert)
    live.attach()
    live.site.do(live.back_up("s2", "s1"))
    assert live.restored("s2") == live.restored("s1")


def moved(live: Live, **more: Any) -> dict[str, Any]:
    """The command."""
    destination = live.site.host.volume("w", uuid="v")
    return {"command": "MigrateVolume", "source": live.volume(), "destination": destination, **more}


def test_a_volume_moves_while_its_guest_writes(live: Live) -> None:
    live.begin()
    answer = live.site.do(moved(live))
    assert answer["newData"]["path"] == "w"
    assert live.site.host.files() == ["w"]
    assert live.stage.lab.visible(VM) == [str(live.site.host.pool / "w")]
    live.goes_on()
    live.end()
    raw = live.site.host.root / "w.raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", str(live.site.host.pool / "w"), str(raw))
    assert moment(raw.read_bytes()[: BLOCKS * BLOCK]) > BLOCKS
    live.site.do({"command": "Delete", "data": live.site.host.volume("w")})


@pytest.mark.parametrize("after_s", [0.05, 0.5])
def test_the_agent_is_killed_while_it_moves_a_volume(live: Live, after_s: float) -> None:
    """The guest has one of the two, and goes on, and the other is not there."""
    live.begin()
    live.site.begin(moved(live, id=f"c-move-{after_s}"))
    time.sleep(after_s)
    live.site.host.stop(SIGKILL)
    live.site.host.start()
    live.ended(f"c-move-{after_s}")
    (kept,) = live.site.host.files()
    assert live.stage.lab.visible(VM) == [str(live.site.host.pool / kept)]
    assert live.domain.blockJobInfo(live.target()) == {}
    live.goes_on()
    live.end()
    live.site.do({"command": "Delete", "data": live.site.host.volume(kept)})


def test_a_volume_moves_without_a_guest(live: Live) -> None:
    live.create()
    content = live.site.content()
    live.site.do(moved(live))
    assert live.site.host.files() == ["w"]
    assert live.site.content("w") == content
    live.site.do({"command": "Delete", "data": live.site.host.volume("w")})


def answers(live: Live) -> bool:
    """Whether libvirt sees an agent in the guest."""
    return agent_answers(live.domain.XMLDesc())


@pytest.fixture
def resting(live: Live) -> Iterator[Live]:
    """With an agent in the guest, by which the writing comes to rest."""
    live.begin()
    live.stage.console.ask("agent", "AGENT")
    until(lambda: answers(live))
    yield live
    live.stage.console.ask("no-agent", "NO-AGENT")
    until(lambda: not answers(live))


def test_the_guest_is_at_rest_for_the_moment(resting: Live) -> None:
    resting.site.do(resting.back_up("s1"))
    resting.stage.console.wait("FROZE")
    resting.stage.console.wait("THAWED")
    resting.nothing_left()
    resting.goes_on()
    resting.restored("s1")
    assert '"at_rest": true' in resting.site.host.log.read_text()


def test_a_guest_that_a_dead_agent_left_frozen(resting: Live) -> None:
    """It died in the moment between."""
    live = libvirt.VIR_DOMAIN_AFFECT_LIVE
    element = libvirt.VIR_DOMAIN_METADATA_ELEMENT
    resting.site.host.stop(SIGKILL)
    resting.domain.setMetadata(element, "<frozen/>", "storage-agent", FROZEN, live)
    resting.domain.fsFreeze()
    resting.stage.console.wait("FROZE")
    resting.site.host.start()
    resting.stage.console.wait("THAWED")
    resting.goes_on()
    resting.nothing_left()


def test_a_guest_that_was_killed_has_lost_what_changed(live: Live) -> None:
    live.create()
    live.attach("other")
    live.site.do(live.back_up("s1"))
    os.kill(int((live.stage.lab.daemon.folder / "run" / "qemu" / "other.pid").read_text()), SIGKILL)
    until(lambda: not live.stage.lab.domain("other").isActive())
    live.stage.lab.domain("other").create()
    answer = live.site.do(live.back_up("s2", "s1"))
    assert "full backup" in answer["details"]
    assert live.site.do(live.back_up("s3", "s2")).get("details") is None
    assert live.restored("s3") == live.restored("s2") == 0
    assert live.stage.lab.domain("other").listAllCheckpoints() == []
