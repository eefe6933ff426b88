"""Fixtures for all tests, what hypothesis may find wrong, and what the garbage collector leaves alone."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, settings

from stores.transfer.engine import TransferEngine

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background jobs ignore it, and so would every process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


pytest_plugins = [
    "tests.servers",
    "tests.postgres",
    "tests.ledgers",
    "tests.secret_scan",
    "tests.samba",
    "tests.swift",
    "tests.ceph",
    "tests.hyperv",
    "tests.libvirtd",
    "tests.kvm_machines",
    "tests.lvm",
    "tests.tgt",
]

# An example fails for what it does, not for how long it takes on a busy machine.
settings.register_profile("any-speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-speed")


# The system's authorities sign for no server of these tests, and to read them takes longer than most connections. Also for
# child processes, unless they are given an environment of their own.
os.environ["SSL_CERT_FILE"] = os.devnull


def pytest_collection_finish() -> None:
    """Thousands of tests stay to the end; whoever collects garbage to count what is left need not look through them."""
    gc.collect()
    gc.freeze()


@pytest.fixture
async def engine() -> AsyncIterator[TransferEngine]:
    """No buffer of it is out at the end."""
    engine = TransferEngine()
    yield engine
    assert engine.buffers.taken == 0
    await engine.aclose()
