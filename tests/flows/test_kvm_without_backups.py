"""Backups of a guest whose qemu holds no moments: its libvirt is one that knows nothing of backups."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL
from typing import Any

import libvirt
import pytest

from hypervisors.kvm.domain_xml import Image, copy_target, mirrors_of
from tests.doubles.backup_site import BackupSite, backup_site, until
from tests.doubles.disk_images import qemu_img
from tests.kvm_live import BLOCK, BLOCKS, Live, live_guest
from tests.kvm_machines import Stage
from tests.servers import S3Server

OLD = Path(__file__).parents[1] / "doubles" / "old_libvirt"


@pytest.fixture(scope="module")
def site(seaweed: S3Server, stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackupSite]:
    directory = tmp_path_factory.mktemp("old") / "cache"
    with backup_site(seaweed, directory, libvirt=stage.lab.daemon.uri, environment={"PYTHONPATH": str(OLD)}) as made:
        yield made


@pytest.fixture
def live(site: BackupSite, stage: Stage) -> Iterator[Live]:
    with live_guest(site, stage) as made:
        yield made


def copied(live: Live) -> bool:
    """Whether a disk of the guest is being copied."""
    return bool(mirrors_of(live.domain.XMLDesc()))


def nothing_left(live: Live) -> None:
    assert not copied(live)
    live.nothing_left()
    frozen = live.site.host.pool / ".storage-agent" / "frozen"
    assert not [path for path in frozen.rglob("*") if path.is_file()]


@pytest.mark.parametrize("image_format", ["QCOW2", "RAW"])
def test_a_backup_is_whole_and_of_one_moment(live: Live, image_format: str) -> None:
    live.begin(image_format)
    before = live.written()
    live.site.do(live.back_up("s1"))
    after = live.written()
    nothing_left(live)
    live.goes_on()
    assert before <= live.restored("s1") <= after
    answer = live.site.do(live.back_up("s2", "s1"))
    assert "full backup" in answer["details"]
    assert after <= live.restored("s2")
    nothing_left(live)


@pytest.mark.parametrize("how", ["cut", "stall"])
def test_a_store_that_fails_in_the_middle(live: Live, how: str) -> None:
    live.begin()
    live.site.line.rate_up = 1_000_000
    if how == "cut":
        live.site.line.cut_after = 0
    limit: dict[str, Any] = {"deadline_s": 3} if how == "stall" else {}
    live.site.begin(live.back_up("s1", id=f"c-{how}", **limit))
    assert live.ended(f"c-{how}")["state"] == "failed"
    nothing_left(live)
    live.goes_on()
    live.site.line.cut_after = live.site.line.rate_up = None
    live.site.do(live.back_up("s1"))
    live.restored("s1")


@pytest.mark.parametrize("after_s", [0.1, 0.5])
def test_the_agent_is_killed(live: Live, after_s: float) -> None:
    """While the disk is being copied, or the copy sent."""
    live.begin()
    live.site.line.rate_up = 1_000_000
    live.site.begin(live.back_up("s1", id=f"c-killed-{after_s}"))
    time.sleep(after_s)
    live.site.host.stop(SIGKILL)
    live.goes_on()
    live.site.line.rate_up = None
    live.site.host.start()
    live.ended(f"c-killed-{after_s}")
    until(lambda: not copied(live))
    nothing_left(live)
    live.goes_on()
    live.site.do(live.back_up("s1"))
    live.restored("s1")


def test_a_snapshot_outlives_the_guest(live: Live) -> None:
    live.begin()
    before = live.written()
    live.site.do({"command": "CreateObject", "data": live.snapshot("s1")})
    after = live.written()
    live.nothing_left()
    live.end()
    live.site.do(live.site.back_up(live.snapshot("s1"), "s1"))
    assert before <= live.restored("s1") <= after


def test_a_copy_that_a_dead_agent_left_is_ended(live: Live) -> None:
    live.begin()
    live.site.host.stop(SIGKILL)
    target = live.site.host.pool / ".storage-agent" / "frozen" / "v" / "dead"
    target.parent.mkdir(parents=True, exist_ok=True)
    qemu_img("create", "-q", "-f", "qcow2", str(target), str(2 * BLOCKS * BLOCK))
    flags = libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
    live.domain.blockCopy(live.target(), copy_target(Image(str(target), "qcow2")), None, flags)
    assert copied(live)
    live.site.host.start()
    until(lambda: not copied(live))
    live.goes_on()
    target.unlink()
    nothing_left(live)
