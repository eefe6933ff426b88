"""Exports, options, the table of mounts, and the life of one mount, without mounting anything."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.errors import DeviceFault, InvalidReference, PolicyRefused, StoreError, Unavailable
from stores.mounts.export import ALLOWED, FORCED, allowed, checked, export, split_options
from stores.mounts.mount import Mount, MountHangs, MountInUse
from stores.mounts.mounts import Mounts
from stores.mounts.table import Mounted, parse
from stores.resolver import Resolver
from stores.secret import Secret
from stores.settings import StoreSettings
from stores.to import DataStoreTO, NfsTO, PrimaryDataStoreTO
from stores.transfer.engine import TransferEngine
from tests.doubles.mounting import NotingMounter

ROOT = Path("/mnt")
SHARE = export("nfs.test", "/export")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# ------------------------------------------------------------------------------------------------ what may be mounted


def test_an_export_is_named_in_one_way() -> None:
    assert export("nfs.test", "//export//a/").source == "nfs.test:/export/a"
    assert export("[fd00::1]", "/e").source == "[fd00::1]:/e"
    assert export("NFS.test", "/e").name == export("nfs.test", "/e").name != export("nfs.test", "/f").name
    assert export("h", "/e", ["vers=3"]).name != export("h", "/e").name


@pytest.mark.parametrize(
    ("host", "path"),
    [
        *(("", "/e"), ("-o", "/e"), ("h,vers=3", "/e"), ("h /", "/e"), ("a:b/c", "/e"), ("h\n", "/e")),
        *(("h", ""), ("h", "e"), ("h", "/a/../b"), ("h", "/a\nb"), ("h", "/" + "x" * 1024)),
    ],
)
def test_what_is_no_export_is_refused(host: str, path: str) -> None:
    with pytest.raises(InvalidReference):
        export(host, path)


@pytest.mark.parametrize(
    "option",
    [
        "suid",
        "dev",
        "exec",
        "vers=9",
        "vers=",
        "hard=1",
        "timeo=x",
        "context=system_u",
        "port=1,suid",
        "mountpoint=/",
        "x",
    ],
)
def test_options_that_could_do_harm_are_refused(option: str) -> None:
    with pytest.raises(PolicyRefused, match="mount option"):
        checked([option])


@given(st.lists(st.text(max_size=12), max_size=4))
def test_no_option_passes_that_is_not_listed(options: list[str]) -> None:
    try:
        passed = checked(options)
    except PolicyRefused:
        return
    assert all(option.partition("=")[0] in ALLOWED for option in passed)
    assert all("," not in option and option.isprintable() and option not in FORCED for option in passed)


def test_options_come_as_one_text_or_many() -> None:
    assert split_options(" vers=4.2, hard,,") == ("vers=4.2", "hard")
    assert checked(["vers=4.1", "", "nosuid", "nconnect=4"]) == ("vers=4.1", "nconnect=4")


def test_only_exports_of_the_configuration_where_there_are_any() -> None:
    allowed(SHARE, [])
    allowed(export("nfs.test", "/export/a"), ["NFS.test:/export"])
    allowed(export("fd00::1", "/a"), ["[fd00::1]:/"])
    for other in (export("nfs.test", "/exports"), export("other.test", "/export")):
        with pytest.raises(PolicyRefused, match=r"nfs\.exports"):
            allowed(other, ["nfs.test:/export"])


def test_the_table_of_mounts_is_read_as_the_kernel_writes_it() -> None:
    text = (
        "22 1 0:21 / /mnt/a\\040b rw,relatime shared:1 master:2 - nfs4 h:/e\\134x rw,vers=4.2\n"
        "23 22 0:22 / /mnt/a\\040b rw - nfs h:/above rw\n"
        "24 1 0:23 /sub /mnt/c rw - fuse.x src rw\nbroken\n"
    )
    assert parse(text) == {
        Path("/mnt/a b"): Mounted(Path("/mnt/a b"), "h:/above", "nfs"),
        Path("/mnt/c"): Mounted(Path("/mnt/c"), "src", "fuse.x"),
    }
    assert parse(text.splitlines()[0])[Path("/mnt/a b")].source == "h:/e\\x"


# ------------------------------------------------------------------------------------------------- the life of a mount


class Probe:
    """Fails as it is told to, once for each failure."""

    def __init__(self, *failures: OSError | None) -> None:
        self.failures = list(failures)

    def __call__(self, at: Path) -> None:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure


_made: list[Mount] = []


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    while _made:
        _made.pop().close()
    for thread in threading.enumerate():
        if thread.name.startswith("mount-"):
            thread.join(60)
            assert not thread.is_alive()


def mount_with(mounter: NotingMounter, probe: Probe | None = None, clock: Clock | None = None) -> Mount:
    mount = Mount(SHARE, ROOT / "p", mounter, table=mounter.table, probe=probe or Probe(), clock=clock or Clock())
    _made.append(mount)
    return mount


async def use(mount: Mount) -> None:
    async with mount.in_use():
        pass


async def test_mounted_at_first_use_and_taken_over_afterwards() -> None:
    mounter = NotingMounter()
    for _ in range(2):  # the second one is another process
        mount = mount_with(mounter)
        await asyncio.gather(*(use(mount) for _ in range(5)))
    assert mounter.calls == ["mount nfs.test:/export p"]


async def test_something_else_at_its_place_is_left_alone() -> None:
    mounter = NotingMounter()
    mounter.mounted[ROOT / "p"] = Mounted(ROOT / "p", "other:/e", "nfs4")
    mount = mount_with(mounter)
    with pytest.raises(DeviceFault, match="other:/e is mounted there"):
        await use(mount)
    await mount.release()
    assert mounter.calls == []


async def test_a_failed_mount_is_told_to_all_and_tried_again_later() -> None:
    mounter, clock = NotingMounter(), Clock()
    mounter.failure = Unavailable("refused")
    mount = mount_with(mounter, clock=clock)
    outcomes = await asyncio.gather(*(use(mount) for _ in range(5)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    assert len(mounter.calls) == 1
    mounter.failure = None
    clock.now += 3
    await use(mount)
    assert mount.users == 0


async def test_a_stale_mount_is_made_anew_once() -> None:
    mounter = NotingMounter()
    mounter.mounted[ROOT / "p"] = Mounted(ROOT / "p", SHARE.source, "nfs4")
    mount = mount_with(mounter, Probe(OSError(errno.ESTALE, "stale")))
    await use(mount)
    assert mounter.calls == ["unmount p", "mount nfs.test:/export p"]


async def test_a_mount_that_stays_stale_is_a_fault() -> None:
    mounter = NotingMounter()
    mount = mount_with(mounter, Probe(*[OSError(errno.ESTALE, "stale")] * 2))
    with pytest.raises(DeviceFault) as caught:
        await use(mount)
    assert caught.value.details["errno"] == "ESTALE"
    assert len(mounter.calls) == 3


async def test_a_stale_mount_that_guests_have_open_stays() -> None:
    mounter = NotingMounter()
    mounter.busy = True
    mount = mount_with(mounter, Probe(OSError(errno.ESTALE, "stale")))
    with pytest.raises(MountInUse):
        await use(mount)


async def test_it_is_not_unmounted_while_it_is_used() -> None:
    mounter = NotingMounter()
    mount = mount_with(mounter)
    async with mount.in_use():
        with pytest.raises(MountInUse, match="1 commands"):
            await mount.release()
    await mount.release()
    await mount.release()
    assert mounter.calls == ["mount nfs.test:/export p", "unmount p"]
    await use(mount)
    assert mounter.calls[-1] == "mount nfs.test:/export p"


async def test_a_use_that_is_cancelled_is_no_use() -> None:
    mount = mount_with(NotingMounter())
    entered = asyncio.Event()

    async def held() -> None:
        async with mount.in_use():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(held())
    await entered.wait()
    assert mount.users == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert mount.users == 0


# ---------------------------------------------------------------------------------------------------------- all of them


def mounts_with(mounter: NotingMounter, clock: Clock) -> Mounts:
    return Mounts(mounter, ROOT, table=mounter.table, clock=clock, probe=Probe(), linger_s=60)


async def test_image_stores_go_when_idle_and_pools_stay() -> None:
    mounter, clock = NotingMounter(), Clock()
    mounts = mounts_with(mounter, clock)
    pool, images = mounts.pool("pool-1", "nfs.test", "/p"), mounts.image_store("nfs.test", "/i")
    assert mounts.image_store("nfs.test", "/i/") is images
    async with images.in_use():
        await use(pool)
        clock.now += 100
        await mounts.tidy()
        assert len(mounter.mounted) == 2
    clock.now += 59
    await mounts.tidy()
    assert len(mounter.mounted) == 2
    clock.now += 1
    await mounts.tidy()
    assert set(mounter.mounted) == {ROOT / "pool-1"}
    mounts.close()


async def test_what_an_earlier_process_mounted_goes_too_unless_it_is_used() -> None:
    mounter, clock = NotingMounter(), Clock()
    wanted, unwanted = export("nfs.test", "/i"), export("nfs.test", "/old")
    foreign = (ROOT / "nfs-mine", ROOT / "uuid", Path("/srv") / unwanted.name)
    for at in (ROOT / wanted.name, ROOT / unwanted.name, *foreign):
        mounter.mounted[at] = Mounted(at, wanted.source, "nfs4")
    mounts = mounts_with(mounter, clock)
    images = mounts.image_store("nfs.test", "/i")
    for _ in range(3):
        await use(images)
        await mounts.tidy()
        clock.now += 30
    assert mounter.calls == [f"unmount {unwanted.name}"]
    mounter.busy = True
    clock.now += 100
    await mounts.tidy()  # a guest reads an ISO there: it stays, without a word
    assert ROOT / wanted.name in mounter.mounted
    mounts.close()


async def test_what_only_looks_leaves_the_mounts_as_they_were() -> None:
    mounter = NotingMounter()
    there = export("nfs.test", "/there")
    mounter.mounted[ROOT / there.name] = Mounted(ROOT / there.name, there.source, "nfs4")
    mounts = mounts_with(mounter, Clock())
    await use(mounts.image_store("nfs.test", "/there"))
    await use(mounts.image_store("nfs.test", "/new"))
    assert len(mounter.mounted) == 2
    await mounts.undo()
    assert set(mounter.mounted) == {ROOT / there.name}
    mounts.close()


def test_the_policy_is_asked_before_anything_is_made() -> None:
    mounts = Mounts(NotingMounter(), ROOT, exports=["nfs.test:/export"], options=["vers=4.2"])
    assert mounts.pool("u", "nfs.test", "/export/a", ["hard"]).export.options == ("vers=4.2", "hard")
    with pytest.raises(PolicyRefused):
        mounts.image_store("nfs.test", "/other")
    with pytest.raises(PolicyRefused):
        mounts.pool("u", "nfs.test", "/export", ["suid"])


def test_errors_of_mounts_say_whether_a_retry_helps() -> None:
    kinds: list[type[StoreError]] = [MountHangs, MountInUse]
    assert {kind.retry.value for kind in kinds} == {"yes"}


# -------------------------------------------------------------------------------------------------------- from commands


@pytest.mark.parametrize(
    ("to", "source", "options"),
    [
        (NfsTO(url=Secret("nfs://nfs.test/export/a"), nfsVersion="4.1"), "nfs.test:/export/a", ("hard", "vers=4.1")),
        (NfsTO(url=Secret("nfs://[fd00::1]:20049/e/")), "[fd00::1]:/e", ("hard", "port=20049")),
        (
            PrimaryDataStoreTO(
                uuid="p",
                poolType="NetworkFilesystem",
                host="nfs.test",
                path="/p",
                port=2049,
                details={"nfsmountopts": Secret("vers=3,nolock")},
            ),
            "nfs.test:/p",
            ("hard", "port=2049", "vers=3", "nolock"),
        ),
    ],
)
async def test_what_commands_name_is_mounted_when_it_is_used(
    to: DataStoreTO, source: str, options: tuple[str, ...], tmp_path: Path, engine: TransferEngine
) -> None:
    mounter = NotingMounter()
    mounts = Mounts(mounter, tmp_path, options=["hard"], table=mounter.table, probe=Probe())
    resolver = Resolver(StoreSettings(mount_root=tmp_path), engine, mounts=mounts)
    store = resolver.store(to)
    assert mounter.calls == []
    with pytest.raises(StoreError):  # the double mounts nothing, and the directory is not there
        await store.usage()
    assert [(export.source, export.options) for export in mounter.exports] == [(source, options)]
    await store.let_go()
    assert mounter.mounted == {}
    mounts.close()
    await resolver.aclose()


async def test_a_pool_without_a_host_is_one_that_the_host_has_mounted(tmp_path: Path, engine: TransferEngine) -> None:
    mounter = NotingMounter()
    mounts = Mounts(mounter, tmp_path, table=mounter.table)
    resolver = Resolver(StoreSettings(mount_root=tmp_path), engine, mounts=mounts)
    (tmp_path / "p").mkdir()
    with pytest.raises(DeviceFault, match="nothing is mounted"):
        await resolver.store(PrimaryDataStoreTO(uuid="p", poolType="NetworkFilesystem")).usage()
    assert mounter.calls == []
    await resolver.aclose()
