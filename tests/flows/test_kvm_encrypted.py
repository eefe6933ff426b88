"""Encrypted volumes of KVM over a real libvirt: made, filled, attached, grown. What a guest reads, and what lies there."""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hypervisors.contract import HypervisorType, OperationUnsupported
from hypervisors.operations import Operations
from hypervisors.registry import handlers
from hypervisors.verbs import AttachVolume, Call, Copy, Create, Delete, DetachVolume, Request, Resize
from stores.contract import MiB
from stores.errors import InvalidReference
from stores.resolver import Resolver
from stores.secret import Secret
from stores.settings import StoreSettings
from stores.to import ImageFormat, PrimaryDataStoreTO, SnapshotObjectTO, TemplateObjectTO, VolumeObjectTO
from stores.tools.process import ToolFailed, ToolRunner
from stores.transfer.engine import TransferEngine
from tests.kvm_machines import Stage, until

PASSPHRASE = "correct, horse=battery"
DATA = random.Random(5).randbytes(3 * MiB)


class Host:
    """A pool with a template, and the machines of a libvirt."""

    def __init__(self, root: Path, stage: Stage, operations: Operations) -> None:
        self.root = root
        self.stage = stage
        self.operations = operations
        self.pool = PrimaryDataStoreTO(uuid="p", poolType="Filesystem", path=str(root))

    def volume(self, path: str = "v", **told: object) -> VolumeObjectTO:
        secret = {"passphrase": Secret(PASSPHRASE), "encryptFormat": "LUKS"}
        return VolumeObjectTO.model_validate(
            {"path": path, "dataStore": self.pool, "format": "QCOW2", "size": 8 * MiB, **secret, **told}
        )

    def template(self) -> TemplateObjectTO:
        raw = self.root.parent / "t.raw"
        raw.write_bytes(DATA + bytes(5 * MiB))
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, self.root / "t.qcow2"], check=True)
        return TemplateObjectTO(path="t.qcow2", format=ImageFormat.QCOW2, imageDataStore=self.pool)

    def call(self, token: str = "c-1") -> Call:
        return Call(token, HypervisorType.KVM)

    def read(self, path: str) -> bytes:
        """The disk's content, by qemu-img and the passphrase."""
        key, raw = self.root.parent / "key", self.root.parent / "read.raw"
        key.write_text(PASSPHRASE)
        options = f"driver=qcow2,encrypt.key-secret=k,file.filename={self.root / path}"
        secret = ("--object", f"secret,id=k,file={key}")
        subprocess.run(["qemu-img", "convert", *secret, "--image-opts", options, "-O", "raw", raw], check=True)
        return raw.read_bytes()

    @property
    def secrets(self) -> list[str]:
        """Uuids of those that libvirt knows."""
        return [secret.UUIDString() for secret in self.stage.lab.connection.listAllSecrets()]


@pytest.fixture
async def here(tmp_path: Path, stage: Stage, engine: TransferEngine) -> AsyncIterator[Host]:
    stage.clear()
    pool, run = tmp_path / "images", tmp_path / "run"
    pool.mkdir()
    run.mkdir(mode=0o700)
    resolver = Resolver(StoreSettings(roots=(pool,), runtime_dir=run), engine)
    by_type = handlers(engine, ToolRunner(), run, libvirt_uri=stage.lab.daemon.uri)
    host = Host(pool, stage, Operations(resolver, by_type, engine, lambda: 0.0))
    yield host
    stage.clear()
    assert host.secrets == []
    assert [*run.rglob("*")] == []
    await by_type[HypervisorType.KVM].aclose()
    await resolver.aclose()


async def test_a_guest_reads_a_template_that_lies_there_encrypted(here: Host) -> None:
    operations, volume = here.operations, here.volume(uuid="serial-1")
    copied = await operations.copy(here.call(), Copy(here.template(), volume))
    assert copied.data.path == "v"
    assert here.read("v") == DATA + bytes(5 * MiB)
    stored = (here.root / "v").read_bytes()
    assert all(DATA[start : start + 512] not in stored for start in range(0, len(DATA), MiB // 2))
    assert PASSPHRASE.encode() not in b"".join(path.read_bytes() for path in here.root.rglob("*") if path.is_file())

    for _ in range(2):
        await operations.attach_volume(here.call(), AttachVolume(volume, "running"))
    until(lambda: "serial1" in here.stage.seen())
    name, _, size = here.stage.seen()["serial1"]
    assert size == 8 * MiB
    whole = hashlib.sha256(DATA + bytes(5 * MiB)).hexdigest()
    assert here.stage.console.ask(f"hash {name}", "HASH") == [whole]
    here.stage.console.ask(f"write {name} from-the-guest", "WROTE")
    await operations.resize(here.call(), Resize(volume, 12 * MiB))
    until(lambda: here.stage.seen()["serial1"][2] == 12 * MiB)
    assert len(here.secrets) == 1

    plainly = volume.model_copy(update={"passphrase": None, "encryptFormat": None})
    await operations.detach_volume(here.call(), DetachVolume(plainly, "running", within_s=30.0))
    assert here.secrets == []
    assert here.read("v")[: 3 * MiB] == b"from-the-guest\n".ljust(512, b"\0") + DATA[512:]
    await operations.delete(here.call(), Delete(plainly))
    assert not (here.root / "v").exists()


async def test_an_empty_one_grows_without_a_guest(here: Host) -> None:
    volume = here.volume()
    made = await here.operations.create(here.call(), Create(volume))
    assert isinstance(made, VolumeObjectTO)
    assert made.size == 8 * MiB
    grown = await here.operations.resize(here.call(), Resize(volume, 9 * MiB))
    assert grown.size == 9 * MiB
    assert here.read("v") == bytes(9 * MiB)
    with pytest.raises(ToolFailed, match="Invalid password"):
        await here.operations.resize(here.call(), Resize(here.volume(passphrase=Secret("guess")), 10 * MiB))
    recovered = await here.operations.recover(HypervisorType.KVM, Resize(volume, 9 * MiB), "c-1")
    assert recovered.outcome == "finished"


async def test_an_attaching_that_came_to_nothing_leaves_no_passphrase(here: Host) -> None:
    volume = here.volume()
    await here.operations.create(here.call(), Create(volume))
    wrong = here.volume(passphrase=Secret("guess"))
    with pytest.raises(Exception, match="password"):
        await here.operations.attach_volume(here.call(), AttachVolume(wrong, "running"))
    assert (here.secrets, here.stage.lab.held("running")) == ([], 0)
    request = AttachVolume(volume, "running")
    await here.operations.attach_volume(here.call(), request)
    assert (await here.operations.recover(HypervisorType.KVM, request, "c-1")).outcome == "finished"
    here.stage.clear()
    assert (await here.operations.recover(HypervisorType.KVM, request, "c-1")).outcome == "undone"


async def test_what_is_refused(here: Host) -> None:
    """Whatever would carry the content away in the clear, and commands that do not say what is recorded."""
    operations, volume, plain = (
        here.operations,
        here.volume(),
        here.volume("plain", passphrase=None, encryptFormat=None),
    )
    locked = volume.model_copy(update={"passphrase": None, "encryptFormat": None})
    await operations.create(here.call(), Create(volume))
    await operations.create(here.call(), Create(plain))
    before = sorted(here.root.rglob("*"))

    async def refused(error: type[Exception], request: Request) -> None:
        doing = {
            Copy: operations.copy,
            Create: operations.create,
            Resize: operations.resize,
            AttachVolume: operations.attach_volume,
        }
        with pytest.raises(error, match=r"encrypted|passphrase|LUKS"):
            await doing[type(request)](here.call("c-2"), request)  # type: ignore[operator]
        assert sorted(here.root.rglob("*")) == before

    snapshot = SnapshotObjectTO(path="v/s", name="s", volume=locked, dataStore=here.pool)
    for source in (volume, locked):
        await refused(OperationUnsupported, Copy(source, here.volume("copy")))
    for wanted in (
        Create(snapshot),
        Create(here.volume("n", format="RAW")),
        Create(here.volume("n", encryptFormat="aes")),
    ):
        await refused(OperationUnsupported, wanted)
    for unsaid in (
        Create(here.volume("n", passphrase=None)),
        Resize(locked, 9 * MiB),
        AttachVolume(locked, "running"),
        AttachVolume(plain.model_copy(update={"passphrase": Secret("s")}), "running"),
    ):
        await refused(InvalidReference, unsaid)
