"""A directory that is a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from stores.backends.filesystem import FilesystemStore
from stores.transfer.engine import TransferEngine


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    pool = tmp_path / "pool"
    pool.mkdir()
    return pool


@pytest.fixture
def store(pool: Path, engine: TransferEngine) -> FilesystemStore:
    return FilesystemStore(pool, engine, id="pool:1", allowed=[pool])
