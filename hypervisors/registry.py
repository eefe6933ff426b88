"""From a hypervisor's name to its handler. The only module of `hypervisors` that names concrete handlers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hypervisors.contract import HypervisorHandler, HypervisorType
from hypervisors.images.gate import GateLimits
from hypervisors.kvm.handler import KvmHandler
from hypervisors.kvm.snapshots import KvmSnapshots
from hypervisors.process import ToolRunner
from hypervisors.qemu.qemu_img import QemuImg
from stores.transfer.engine import TransferEngine


def handlers(
    engine: TransferEngine, runner: ToolRunner, runtime_dir: Path, limits: GateLimits | None = None
) -> Mapping[HypervisorType, HypervisorHandler]:
    """One handler for each hypervisor that this agent knows. Opens nothing. `runtime_dir`: for sockets."""
    qemu_img = QemuImg(runner)
    snapshots = KvmSnapshots(engine, qemu_img, runner, runtime_dir)
    kvm = KvmHandler(engine, qemu_img, limits or GateLimits(), snapshots)
    return {handler.type: handler for handler in (kvm,)}
