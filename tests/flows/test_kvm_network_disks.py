"""Images of RBD and LUNs of iSCSI as disks of a guest that runs: what it reads and writes, on a real Ceph, tgt and libvirt."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypervisors.contract import HypervisorType, ImageLocked
from hypervisors.guests import GuestUnfit
from hypervisors.kvm.domain_xml import SecretUse, secret_of
from hypervisors.kvm.volume_secrets import Needed
from hypervisors.operations import Operations
from hypervisors.registry import handlers
from hypervisors.verbs import AttachVolume, Call, DetachVolume, Introduce, Resize
from stores.contract import MiB
from stores.errors import AccessDenied, StoreUnsupported
from stores.resolver import Resolver
from stores.settings import StoreSettings
from stores.to import ImageFormat, PrimaryDataStoreTO, VolumeObjectTO
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from tests.ceph import Ceph
from tests.images import open_for_writing
from tests.kvm_machines import Stage, until
from tests.tgt import IscsiServer

SIZE = 8 * MiB
CONTENT = random.Random(7).randbytes(3 * MiB) + bytes(SIZE - 3 * MiB)


@dataclass
class Disk:
    """A disk of `SIZE` bytes that others have made. `content`: past the agent. `opened`: for qemu's tools, as the storage's
    administrator. `secret`: what is under our name in libvirt while a guest has it."""

    volume: VolumeObjectTO
    content: Callable[[], bytes]
    use: SecretUse
    name: str
    opened: str | None = None

    @property
    def key(self) -> str:
        """By which the storage knows us."""
        pool = self.volume.dataStore
        assert isinstance(pool, PrimaryDataStoreTO)
        return next(value.reveal() for name, value in (pool.details or {}).items() if "ecret" in name)

    @property
    def secret(self) -> str:
        return Needed(self.use, self.name, None).id

    def without_key(self) -> VolumeObjectTO:
        """As a journal has it."""
        pool = self.volume.dataStore
        assert isinstance(pool, PrimaryDataStoreTO)
        return self.volume.model_copy(update={"dataStore": pool.model_copy(update={"details": None})})


def volume(pool: PrimaryDataStoreTO, path: str) -> VolumeObjectTO:
    return VolumeObjectTO(path=path, uuid="serial-1", dataStore=pool, format=ImageFormat.RAW)


@pytest.fixture
def rbd(ceph: Ceph, tmp_path: Path, stage: Stage) -> Iterator[Disk]:
    pool, raw = ceph.new_pool(), tmp_path / "raw"
    raw.write_bytes(CONTENT)
    ceph.tool("rbd", "import", "--no-progress", str(raw), f"{pool}/v")
    opened = f"rbd:{pool}/v:conf={ceph.conf}"
    yield Disk(volume(ceph.to(pool), "v"), lambda: ceph.content(f"{pool}/v"), SecretUse.RBD, f"{pool}/v", opened)
    stage.clear()  # before it is gone under a machine
    ceph.remove_pool(pool)


@pytest.fixture
def lun(tgt: IscsiServer, stage: Stage) -> Iterator[Disk]:
    made = tgt.lun(CONTENT)
    yield Disk(volume(tgt.pool(), made.ref), made.file.read_bytes, SecretUse.ISCSI, made.ref)
    stage.clear()
    tgt.remove(made)


@pytest.fixture(params=["rbd", "lun"])
def disk(request: pytest.FixtureRequest) -> Disk:
    found: Disk = request.getfixturevalue(request.param)
    return found


class Host:
    def __init__(self, stage: Stage, operations: Operations) -> None:
        self.stage = stage
        self.operations = operations

    def call(self, token: str = "c-1") -> Call:
        return Call(token, HypervisorType.KVM)

    @property
    def secrets(self) -> list[str]:
        """Uuids of those that libvirt knows."""
        return [secret.UUIDString() for secret in self.stage.lab.connection.listAllSecrets()]

    def leave_secret(self, disk: Disk) -> None:
        """As an agent that died between two steps."""
        self.stage.lab.connection.secretDefineXML(secret_of(disk.secret, disk.use, disk.name))


@pytest.fixture
async def here(tmp_path: Path, stage: Stage, engine: TransferEngine) -> AsyncIterator[Host]:
    stage.clear()
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    resolver = Resolver(StoreSettings(runtime_dir=run, roots=(tmp_path,)), engine)
    by_type = handlers(engine, ToolRunner(), run, libvirt_uri=stage.lab.daemon.uri)
    host = Host(stage, Operations(resolver, by_type, engine, lambda: 0.0))
    yield host
    stage.clear()
    assert host.secrets == []
    await by_type[HypervisorType.KVM].aclose()
    await resolver.aclose()
    assert [path for path in run.rglob("*") if not path.is_dir()] == []


async def test_a_guest_reads_and_writes_it(here: Host, disk: Disk) -> None:
    operations = here.operations
    await operations.introduce(here.call(), Introduce(disk.volume))
    for _ in range(2):
        attached = await operations.attach_volume(here.call(), AttachVolume(disk.volume, "running", device=3))
        assert (attached.device, attached.disk) == (3, disk.name)
    until(lambda: "serial1" in here.stage.seen())
    name, read_only, size = here.stage.seen()["serial1"]
    assert (read_only, size) == (False, SIZE)
    assert here.stage.console.ask(f"hash {name}", "HASH") == [hashlib.sha256(CONTENT).hexdigest()]
    here.stage.console.ask(f"write {name} from-the-guest", "WROTE")
    assert here.secrets == [disk.secret]
    assert disk.key not in b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")).decode()
    with pytest.raises(ImageLocked):
        await operations.attach_volume(here.call(), AttachVolume(disk.volume, "other"))
    assert here.secrets == [disk.secret]
    # Neither the key nor the storage are needed for this.
    for _ in range(2):
        await operations.detach_volume(here.call(), DetachVolume(disk.without_key(), "running", within_s=30.0))
        assert (here.secrets, here.stage.seen()) == ([], {})
    assert disk.content() == b"from-the-guest\n".ljust(512, b"\0") + CONTENT[512:]


async def test_a_machine_that_does_not_run_has_it_from_its_start_on(here: Host, disk: Disk) -> None:
    await here.operations.attach_volume(here.call(), AttachVolume(disk.volume, "halted"))
    machine = here.stage.lab.domain("halted")
    machine.create()
    assert here.stage.lab.held("halted") == 1
    machine.destroy()
    await here.operations.detach_volume(here.call(), DetachVolume(disk.volume, "halted", within_s=5.0))
    assert here.stage.lab.held("halted") == 0


async def test_an_image_grows_while_the_guest_has_it(here: Host, rbd: Disk) -> None:
    await here.operations.attach_volume(here.call(), AttachVolume(rbd.volume, "running"))
    until(lambda: "serial1" in here.stage.seen())
    grown = await here.operations.resize(here.call(), Resize(rbd.volume, 2 * SIZE))
    assert grown.size == 2 * SIZE
    until(lambda: here.stage.seen()["serial1"][2] == 2 * SIZE)
    assert len(rbd.content()) == 2 * SIZE
    await here.operations.detach_volume(here.call(), DetachVolume(rbd.volume, "running", within_s=30.0))


async def test_the_guest_is_told_of_the_size_that_a_lun_has(here: Host, lun: Disk) -> None:
    await here.operations.attach_volume(here.call(), AttachVolume(lun.volume, "running"))
    until(lambda: "serial1" in here.stage.seen())
    same = await here.operations.resize(here.call(), Resize(lun.volume, SIZE))
    assert same.size == here.stage.seen()["serial1"][2] == SIZE
    with pytest.raises(StoreUnsupported, match="where it was made"):
        await here.operations.resize(here.call(), Resize(lun.volume, 2 * SIZE))
    await here.operations.detach_volume(here.call(), DetachVolume(lun.volume, "running", within_s=30.0))


async def test_one_that_somebody_else_has_open_is_not_attached(here: Host, rbd: Disk) -> None:
    assert rbd.opened is not None
    async with open_for_writing(rbd.opened, ImageFormat.RAW):
        with pytest.raises(ImageLocked, match="another host"):
            await here.operations.attach_volume(here.call(), AttachVolume(rbd.volume, "running"))
    assert (here.secrets, here.stage.lab.held("running")) == ([], 0)
    assert rbd.content() == CONTENT


async def test_a_wrong_secret_leaves_nothing(here: Host, lun: Disk, tgt: IscsiServer) -> None:
    wrong = volume(tgt.pool(secret="wrong-secret-1"), lun.volume.path or "")
    with pytest.raises(AccessDenied, match="CHAP"):
        await here.operations.attach_volume(here.call(), AttachVolume(wrong, "running"))
    assert (here.secrets, here.stage.lab.held("running")) == ([], 0)


async def test_a_machine_that_cannot_have_it_leaves_no_secret(here: Host, disk: Disk) -> None:
    here.stage.lab.define("full", ports=1).create()
    with pytest.raises(GuestUnfit, match="pcie-root-port"):
        await here.operations.attach_volume(here.call(), AttachVolume(disk.volume, "full"))
    assert (here.secrets, here.stage.lab.held("full")) == ([], 0)
    here.stage.lab.remove("full")


async def test_what_a_dead_agent_left(here: Host, disk: Disk) -> None:
    """Its journal has no keys. A secret goes with the attaching that came to nothing, and with the detaching that ended."""
    operations, attach = here.operations, AttachVolume(disk.without_key(), "running")
    here.leave_secret(disk)
    found = await operations.recover(HypervisorType.KVM, attach, "c-1")
    assert (found.outcome, here.secrets) == ("undone", [])

    attached = await operations.attach_volume(here.call(), AttachVolume(disk.volume, "running"))
    found = await operations.recover(HypervisorType.KVM, attach, "c-1")
    assert (found.outcome, found.answer, here.secrets) == ("finished", attached, [disk.secret])
    detach = DetachVolume(disk.without_key(), "running", within_s=30.0)
    assert (await operations.recover(HypervisorType.KVM, detach, "c-2")).outcome == "undone"
    assert here.secrets == [disk.secret]

    await operations.detach_volume(here.call(), detach)
    here.leave_secret(disk)
    assert (await operations.recover(HypervisorType.KVM, detach, "c-2")).outcome == "finished"
    assert here.secrets == []
