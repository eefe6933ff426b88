"""A mount whose server is silent, for real: whoever needs it is refused in bounded time, and nothing else notices."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from stores.mounts.export import export
from stores.mounts.mount import ENOUGH, TRUST_S, Mount, MountHangs
from stores.mounts.mounts import Mounts
from stores.mounts.table import read
from stores.resolver import Resolver
from stores.settings import StoreSettings
from stores.to import PrimaryDataStoreTO
from stores.transfer.engine import TransferEngine
from tests.agent_process import AgentHost
from tests.doubles.fuse_mount import FuseMount, fuse_mount
from tests.doubles.mounting import NotingMounter

SHARE = export("nfs.test", "/export")
POOL = PrimaryDataStoreTO(uuid="p", poolType="NetworkFilesystem", host="nfs.test", path="/export")


async def freed(mount: Mount) -> None:
    """No thread hangs in it any more."""
    while mount.hanging:
        await asyncio.sleep(0.01)


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sa-hung-") as place:
        yield Path(place)


@pytest.fixture
def silent(root: Path) -> Iterator[FuseMount]:
    with fuse_mount(root / "mnt" / "p", SHARE.source) as mounted:
        yield mounted


async def test_a_silent_server_is_noticed_and_heard_again(silent: FuseMount) -> None:
    now = count(0, step=2 * TRUST_S)  # no answer counts for long
    mount = Mount(SHARE, silent.at, NotingMounter(), probe_s=1, clock=lambda: next(now))
    async with mount.in_use():
        assert mount.users == 1
    silent.hang()
    for _ in range(ENOUGH + 3):  # the threads that are left behind in it are bounded
        with pytest.raises(MountHangs, match="does not answer"):
            async with mount.in_use():
                pytest.fail("it hangs")
    assert mount.hanging == ENOUGH
    silent.go_on()
    await freed(mount)
    async with mount.in_use():
        assert mount.users == 1
    mount.close()
    while any(thread.name.startswith("mount-") for thread in threading.enumerate()):
        await asyncio.sleep(0.01)


async def test_a_call_under_way_is_left_behind_and_its_thread_ends_with_the_silence(silent: FuseMount) -> None:
    mount = Mount(SHARE, silent.at, NotingMounter(), probe_s=1)
    silent.hang()
    with pytest.raises(MountHangs):
        await mount.run(os.listdir, silent.at)
    assert 0 < mount.hanging <= ENOUGH
    silent.go_on()
    await freed(mount)
    mount.close()
    assert read()[silent.at].source == SHARE.source
    assert mount.users == 0


async def test_the_store_says_so_as_soon_as_it_is_asked(silent: FuseMount, root: Path, engine: TransferEngine) -> None:
    mounter = NotingMounter()
    now = count(0, step=2 * TRUST_S)
    mounts = Mounts(mounter, root / "mnt", clock=lambda: next(now))
    resolver = Resolver(StoreSettings(mount_root=root / "mnt"), engine, mounts=mounts)
    store = resolver.store(POOL)
    assert (await store.usage()).capacity == 1000 * 4096
    silent.hang()
    with pytest.raises(MountHangs):
        await store.stat("v")
    assert set(mounts.hanging) == {str(silent.at)}
    silent.go_on()
    await freed(mounts.pool("p", "nfs.test", "/export"))
    assert mounter.calls == []  # it was mounted already, and is taken over
    mounts.close()
    await resolver.aclose()


def test_other_commands_and_the_end_of_the_agent_do_not_wait_for_it(silent: FuseMount, root: Path) -> None:
    settings = {"POOLS__MOUNT_ROOT": f"{root}/mnt", "NFS__MOUNTING": "agent", "AGENT__CONCURRENCY": "2"}
    host = AgentHost(root, environment={f"STORAGE_AGENT__{name}": value for name, value in settings.items()})
    host.start()
    stats = {"command": "GetStorageStats", "store": POOL.model_dump(exclude_none=True)}
    assert host("submit", host.write(stats)).code == 0
    silent.hang()
    time.sleep(TRUST_S + 0.5)
    needing = [host.begin("submit", "--json", host.write(stats, f"needs-{n}.json")) for n in range(3)]
    create = {"command": "CreateObject", "data": {**host.volume("v"), "size": 1 << 20}}
    assert host("submit", host.write(create)).code == 0
    for process in needing:
        out, _ = process.communicate(timeout=60)
        assert b'"MountHangs"' in out, out
    assert host.stop() == 0
    assert host.files() == ["v"]


def test_a_call_that_nobody_can_end_is_ended_with_the_process(silent: FuseMount, root: Path) -> None:
    """A directory that the host has mounted itself is nobody's mount to watch over."""
    roots = {"STORAGE_AGENT__POOLS__ROOTS": f'["{root}"]'}
    host = AgentHost(root, environment=roots)
    host.start()
    silent.hang()
    directory = {"storeType": "primary", "uuid": "d", "poolType": "Filesystem", "path": str(silent.at)}
    command = {"id": "hangs", "command": "GetStorageStats", "store": directory}
    assert host("submit", "--no-wait", host.write(command)).code == 0
    while (state := host.call("GET", "/v1/commands/hangs")[1]["state"]) != "running":
        assert state == "accepted"
        time.sleep(0.02)
    assert host.stop() == 1
    assert '"stop forced"' in host.log.read_text()
    host.start()
    assert host.call("GET", "/v1/commands/hangs")[1]["error"]["kind"] == "Interrupted"
    silent.go_on()
    assert host.stop() == 0
