"""What the operator decides about one pool of XenServer hosts. Times are seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hypervisors.xen.hosts import Host
from stores.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class XenPoolSettings:
    """`hosts`: all of the pool's that may be talked to, each with its pinned certificate where it has one (`parse_host`)."""

    name: str
    """For messages."""

    hosts: tuple[Host, ...]
    user: str
    password: Secret | Path
    """Itself, or a file that holds it, which is read at each login: what is changed there counts from the next one on."""

    originator: str
    """This agent's alone, and the same after a restart: by it XAPI counts sessions, and we know what a dead process of ours
    left behind."""

    ca_file: Path | None = None
    """PEM bundle of authorities to trust besides those of the system."""

    connect_timeout_s: float = 30.0
    call_timeout_s: float = 300.0
    """Long: XAPI lets calls wait rather than refusing them."""

    head_timeout_s: float = 60.0
    """Until a host answers a transfer: attaching a disk takes its time."""

    stall_timeout_s: float = 120.0
    """How long a transfer may be without a byte."""

    grace_s: float = 60.0
    """How long a host may go on with what its client has left, until something is done about it."""

    pause_s: float = 1.0
    """Between attempts."""

    lock_s: float = 120.0
    """How long a name that is being written stays locked to other hosts' agents when this one dies. Clocks of agents that share
    a pool may differ by a quarter of it."""

    verify_imports: bool = False
    """Whether each disk that was written is read back and compared."""

    def __post_init__(self) -> None:
        if not self.hosts:
            raise ValueError(f"pool {self.name} needs at least one host")
        if self.lock_s <= 0:
            raise ValueError("lock_s must be positive")
