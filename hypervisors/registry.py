"""From a hypervisor's name to its handler. The only module of `hypervisors` that names concrete handlers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hypervisors.contract import HypervisorHandler, HypervisorType
from hypervisors.images.gate import GateLimits
from hypervisors.kvm.handler import KvmHandler
from hypervisors.kvm.snapshots import KvmSnapshots
from hypervisors.process import ToolRunner
from hypervisors.qemu.qemu_img import QemuImg
from stores.transfer.engine import TransferEngine

if TYPE_CHECKING:
    from hypervisors.xen.config import XenPoolSettings


def handlers(
    engine: TransferEngine,
    runner: ToolRunner,
    runtime_dir: Path,
    limits: GateLimits | None = None,
    *,
    xen: Sequence[XenPoolSettings] = (),
) -> Mapping[HypervisorType, HypervisorHandler]:
    """One handler for each hypervisor that this agent can reach. Opens nothing. `runtime_dir`: for sockets. `xen`: its pools
    of hosts, without which there is no handler for it."""
    limits = limits or GateLimits()
    qemu_img = QemuImg(runner)
    snapshots = KvmSnapshots(engine, qemu_img, runner, runtime_dir)
    made: list[HypervisorHandler] = [KvmHandler(engine, qemu_img, limits, snapshots)]
    if xen:
        made.append(_xen(engine, runner, runtime_dir, limits, xen))
    return {handler.type: handler for handler in made}


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
