"""A backup of a guest that runs is given up before the room ends for what the guest overwrites."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stores.contract import MiB
from tests.doubles.backup_site import backup_site, until
from tests.kvm_live import Live, live_guest
from tests.kvm_machines import made_lab, made_stage
from tests.libvirtd import started, uri_of
from tests.servers import S3Server


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """`folder` is a file system of 64 MiB, for those who are started from now on."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={64 * MiB}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def live(seaweed: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder, cache = tmp_path_factory.mktemp("v"), tmp_path_factory.mktemp("small") / "cache"
    with (
        backup_site(seaweed, cache, libvirt=uri_of(folder)) as site,
        small_disk(site.host.pool),
        started(folder) as daemon,
        made_lab(daemon) as lab,
        made_stage(lab) as stage,
        live_guest(site, stage) as made,
    ):
        yield made


def test_a_backup_without_room_is_given_up_and_the_guest_goes_on(live: Live) -> None:
    live.begin()
    live.site.line.rate_up = 100_000
    live.site.begin(live.back_up("s1", id="c-room"))
    until(live.job)
    live.goes_on()  # all that it writes to was overwritten once, and kept
    found = os.statvfs(live.site.host.pool)
    keeping = found.f_blocks * found.f_frsize // 100
    filler = live.site.host.pool / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - keeping)
    answer = live.ended("c-room")
    assert (answer["state"], answer["error"]["kind"]) == ("failed", "NoSpace"), answer
    live.goes_on()
    filler.unlink()
    live.nothing_left()
    live.site.line.rate_up = None
    live.site.do(live.back_up("s1"))
    live.restored("s1")
