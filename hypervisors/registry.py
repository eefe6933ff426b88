"""From a hypervisor's name to its handler. The only module of `hypervisors` that names concrete handlers."""

from __future__ import annotations

from collections.abc import Mapping

from hypervisors.contract import HypervisorHandler, HypervisorType
from hypervisors.images.gate import GateLimits
from hypervisors.kvm.handler import KvmHandler
from hypervisors.kvm.qemu_img import QemuImg
from hypervisors.process import ToolRunner
from stores.transfer.engine import TransferEngine


def handlers(
    engine: TransferEngine, runner: ToolRunner, limits: GateLimits | None = None
) -> Mapping[HypervisorType, HypervisorHandler]:
    """One handler for each hypervisor that this agent knows. Opens nothing."""
    kvm = KvmHandler(engine, QemuImg(runner), limits or GateLimits())
    return {handler.type: handler for handler in (kvm,)}
