"""Whole daemons that die in the middle of a write into an object store: what they leave there is removed by the next one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from tests.doubles.backup_site import BackupSite, backup_site, until
from tests.servers import S3Server

MB = 1_000_000
SLOW = 4 * MB
BOTH_OF_S0 = {"snapshots/v/s0", "snapshots/v/s0.manifest.json"}


@pytest.fixture
def site(seaweed: S3Server, tmp_path: Path) -> Iterator[BackupSite]:
    with backup_site(seaweed, tmp_path / "cache") as made:
        yield made


def notes(site: BackupSite) -> list[Path]:
    """Of writes that may have left something."""
    return list((site.host.root / "state" / "writes").iterdir())


def ids_noted(site: BackupSite) -> set[str]:
    """Notes in the bucket of multipart uploads that are under way."""
    return {key for key in site.objects() if key.startswith(".storage-agent/")}


def exports_of(site: BackupSite) -> list[str]:
    """Processes of qemu that are at the host's images."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            found.append(process.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [argv for argv in found if "qemu" in argv and str(site.host.root) in argv]


def backup(site: BackupSite, command_id: str) -> dict[str, Any]:
    snapshot = {"type": "snapshot", "path": "v/s1", "dataStore": site.host.volume()["dataStore"]}
    return site.back_up(snapshot, "s1", id=command_id)


def export(site: BackupSite, command_id: str) -> dict[str, Any]:
    target = {"type": "template", "path": "snapshots/v/s1", "format": "QCOW2", "imageDataStore": site.store}
    return {"command": "Copy", "source": site.host.volume("plain"), "destination": target, "id": command_id}


@pytest.mark.parametrize("way", [backup, export], ids=["in order", "from a file"])
def test_killed_in_the_middle_of_a_write(site: BackupSite, way: Any) -> None:
    site.make_volume(mib=48)
    site.make_volume("plain", mib=48)
    snapshot = site.snapshot("s1")
    content = site.content()
    site.line.rate_up = SLOW
    staged = site.do(site.back_up(snapshot, "s0", "staged", id="c-0"))
    site.begin(way(site, "c-1"))
    until(lambda: len(ids_noted(site)) == 2)  # one that is gone on with, and one that is not
    assert len(notes(site)) == 1
    assert len(exports_of(site)) == (way is backup)
    site.host.stop(SIGKILL)
    until(lambda: exports_of(site) == [])
    assert len(site.unfinished()) == 2

    # Without anybody's asking, and without a command that names the store.
    site.line.rate_up = None
    site.host.start()
    until(lambda: site.unfinished() == [] and notes(site) == [])
    assert site.host("uploads", "wait", staged["upload"], "--timeout", "60").code == 0
    assert site.host("uploads", "wait", "--timeout", "60").code == 0
    assert site.objects() == BOTH_OF_S0
    interrupted = site.host("commands", "show", "c-1", "--json").json
    assert interrupted["error"]["kind"] == "Interrupted"

    assert site.do(way(site, "c-2"))["durability"] == "stored"
    assert site.unfinished() == []
    assert notes(site) == []
    manifests = {"snapshots/v/s1.manifest.json"} if way is backup else set()
    assert site.objects() == {"snapshots/v/s1"} | manifests | BOTH_OF_S0
    assert site.restore("s1" if way is backup else "s0", "restored") == content
