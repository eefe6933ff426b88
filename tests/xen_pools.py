"""Our connection to a fake pool of XenServer hosts, and what is to be gone when it is closed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hypervisors.xen.config import XenPoolSettings
from hypervisors.xen.hosts import parse_host
from hypervisors.xen.pool import XenPool
from stores.secret import Secret
from tests.doubles.xapi import Access, Pool


class Clock:
    """Seconds since the epoch, as tests say."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def settings(access: Access, *, originator: str = "agent-1", **changes: Any) -> XenPoolSettings:
    """`access` as the operator would write it down. The CA's certificate is written beside the pool's sockets."""
    ca_file = Path(access.sockets[0]).parent / "trusted.pem"
    ca_file.write_text(access.ca_pem)
    told: dict[str, Any] = {
        "name": "fake",
        "hosts": tuple(parse_host(url) for url in access.urls),
        "user": access.user,
        "password": Secret(access.password),
        "originator": originator,
        "ca_file": ca_file,
        "pause_s": 0.02,
        "grace_s": 2.0,
    }
    return XenPoolSettings(**(told | changes))


@asynccontextmanager
async def connected(
    fake: Pool, *, originator: str = "agent-1", clock: Callable[[], float] | None = None, **changes: Any
) -> AsyncIterator[XenPool]:
    """Nothing of its sessions and tasks is left at the end."""
    pool = XenPool(settings(fake.access, originator=originator, **changes), clock=clock or Clock())
    try:
        yield pool
    finally:
        await pool.aclose()
    left = await fake.controls.left()
    assert originator not in left["sessions"]
    assert [task["name_label"] for task in left["tasks"] if task["name_label"] == pool.task_label] == []
