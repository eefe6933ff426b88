"""Fixtures of the bridge's tests."""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def socket() -> Iterator[Path]:
    """A short path, as sockets want."""
    with tempfile.TemporaryDirectory(prefix="nbd") as directory:
        yield Path(directory) / "s" / "export.sock"


@pytest.fixture(autouse=True)
async def nothing_is_left(socket: Path) -> AsyncIterator[None]:
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not socket.exists()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors
