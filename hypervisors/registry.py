"""From a hypervisor's name to its handler. The only module of `hypervisors` that names concrete handlers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hypervisors.contract import HypervisorHandler, HypervisorType
from hypervisors.images.gate import GateLimits
from hypervisors.kvm.device_snapshots import DeviceSnapshots
from hypervisors.kvm.devices import KvmDevices
from hypervisors.kvm.handler import KvmHandler
from hypervisors.kvm.luks import KvmLuks
from hypervisors.kvm.snapshots import KvmSnapshots
from hypervisors.qemu.qemu_img import QemuImg
from stores.contract import DataStore
from stores.to import DataStoreTO
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine

if TYPE_CHECKING:
    from hypervisors.hyperv.settings import HypervHostSettings
    from hypervisors.kvm.guests import KvmGuests
    from hypervisors.kvm.live import LiveDisks
    from hypervisors.xen.config import XenPoolSettings


def handlers(
    engine: TransferEngine,
    runner: ToolRunner,
    runtime_dir: Path,
    limits: GateLimits | None = None,
    *,
    libvirt_uri: str | None = None,
    xen: Sequence[XenPoolSettings] = (),
    hyperv: Sequence[HypervHostSettings] = (),
    shares: Callable[[DataStoreTO], DataStore] | None = None,
) -> Mapping[HypervisorType, HypervisorHandler]:
    """One handler for each hypervisor that this agent can reach. Opens nothing. `runtime_dir`: for sockets. `libvirt_uri`:
    without it KVM's guests are not touched. `xen`, `hyperv`: their pools and hosts, without which there are no handlers for
    them. `shares`: gives the stores of the shares that Hyper-V's disks are on."""
    limits = limits or GateLimits()
    made: list[HypervisorHandler] = [_kvm(engine, runner, runtime_dir, limits, libvirt_uri)]
    if xen:
        made.append(_xen(engine, runner, runtime_dir, limits, xen))
    if hyperv and shares is not None:
        made.append(_hyperv(engine, runner, runtime_dir, limits, hyperv, shares))
    return {handler.type: handler for handler in made}


def _kvm(
    engine: TransferEngine, runner: ToolRunner, runtime_dir: Path, limits: GateLimits, libvirt_uri: str | None
) -> HypervisorHandler:
    qemu_img = QemuImg(runner)
    devices = KvmDevices(engine, qemu_img, runtime_dir)
    device_snapshots = DeviceSnapshots(engine, devices, runner, runtime_dir)
    live, guests = _guests(engine, libvirt_uri) if libvirt_uri else (None, None)
    snapshots = KvmSnapshots(engine, qemu_img, runner, runtime_dir, live)
    luks = KvmLuks(qemu_img)
    return KvmHandler(engine, qemu_img, limits, snapshots, devices, luks, device_snapshots, guests)


def _guests(engine: TransferEngine, libvirt_uri: str) -> tuple[LiveDisks, KvmGuests]:
    """Imported where there is a libvirt: it takes time."""
    from hypervisors.kvm.guests import KvmGuests
    from hypervisors.kvm.libvirt import Libvirt
    from hypervisors.kvm.live import LiveDisks

    libvirt = Libvirt(libvirt_uri)
    return LiveDisks(libvirt, engine), KvmGuests(libvirt, engine)


def _xen(
    engine: TransferEngine,
    runner: ToolRunner,
    runtime_dir: Path,
    limits: GateLimits,
    settings: Sequence[XenPoolSettings],
) -> HypervisorHandler:
    """Imported where there are pools of hosts: it takes time."""
    from hypervisors.xen.handler import XenHandler
    from hypervisors.xen.importing import Importer
    from hypervisors.xen.pool import XenPool
    from hypervisors.xen.snapshots import XenSnapshots

    pools = [XenPool(told) for told in settings]
    importer = Importer(engine, runner, runtime_dir, limit=limits.virtual_size)
    return XenHandler(engine, pools, importer, XenSnapshots(engine, pools, importer))


def _hyperv(
    engine: TransferEngine,
    runner: ToolRunner,
    runtime_dir: Path,
    limits: GateLimits,
    settings: Sequence[HypervHostSettings],
    shares: Callable[[DataStoreTO], DataStore],
) -> HypervisorHandler:
    """Imported where there are hosts: it takes time."""
    from hypervisors.hyperv.handler import HypervHandler
    from hypervisors.hyperv.psrp import PsrpPort
    from hypervisors.hyperv.reading import Reading

    limit = limits.virtual_size
    reading = Reading(engine, runner, runtime_dir, limit=limit)
    return HypervHandler(engine, settings, lambda host: PsrpPort(host.endpoint), shares, reading, limit=limit)
