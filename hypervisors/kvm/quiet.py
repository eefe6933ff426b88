"""A machine's file systems come to rest for a moment, by the agent inside of it. Everything here blocks.

A frozen machine that is forgotten is as good as dead. So it is marked before it is frozen, and the mark goes when it was
thawed: one that has a mark, while no command of ours is at work on it, is thawed by `thaw_forgotten`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from hypervisors.kvm.backup_xml import agent_answers
from hypervisors.kvm.libvirt_calls import library

_log = structlog.get_logger(__name__)

ANSWER_S = 10
"""How long an agent may take for an answer. Writing back what the machine has in memory is a part of freezing."""

THAW_S = 60.0
"""How long it is asked to thaw, again and again: it may still be at work on the freezing that we gave up."""

FROZEN = "urn:storage-agent:frozen"
"""The mark's name in a machine's metadata (https://libvirt.org/formatdomain.html#general-metadata)."""

_KEY = "storage-agent"
_UNRESPONSIVE = 86  # VIR_ERR_AGENT_UNRESPONSIVE: it was never asked
_NO_METADATA = 80  # VIR_ERR_NO_DOMAIN_METADATA


@contextmanager
def at_rest(
    domain: Any, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> Iterator[bool]:
    """Whether the machine's file systems are at rest while the context lasts; afterwards they never are. Without an agent that
    answers, the machine goes on, and its disks are as after a power cut."""
    if not agent_answers(domain.XMLDesc()):
        yield False
        return
    _mark(domain, "<frozen/>")
    asked, frozen = _freeze(domain)
    try:
        yield frozen
    finally:
        if asked:
            _thaw(domain, clock() + THAW_S, clock, sleep)
        _mark(domain, None)


def thaw_forgotten(domain: Any) -> None:
    """Idempotent."""
    libvirt = library()
    try:
        domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, FROZEN, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() != _NO_METADATA:
            raise
        return
    _log.warning("machine thawed", vm=domain.name(), why="an agent that died had frozen it")
    domain.agentSetResponseTimeout(ANSWER_S)
    domain.fsThaw()
    _mark(domain, None)


def _freeze(domain: Any) -> tuple[bool, bool]:
    """Whether the agent was asked, and whether it did."""
    libvirt = library()
    try:
        domain.agentSetResponseTimeout(ANSWER_S)
        domain.fsFreeze()
    except libvirt.libvirtError as error:
        _log.warning("machine not at rest", vm=domain.name(), why=error.get_error_message())
        return error.get_error_code() != _UNRESPONSIVE, False
    return True, True


def _thaw(domain: Any, until: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
    libvirt = library()
    while True:
        try:
            domain.fsThaw()
        except libvirt.libvirtError as error:
            if clock() >= until or not domain.isActive():
                _log.error("machine not thawed", vm=domain.name(), why=error.get_error_message())
                raise
            sleep(0.5)
        else:
            return


def _mark(domain: Any, text: str | None) -> None:
    libvirt = library()
    live = libvirt.VIR_DOMAIN_AFFECT_LIVE
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, _KEY, FROZEN, live)
