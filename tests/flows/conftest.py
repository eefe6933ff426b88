"""Fixtures of the flow tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.doubles.disk_images import DiskImages, make_disk_images
from tests.doubles.shelf import Shelf
from tests.doubles.world import World, world
from tests.servers import NginxServer, S3Server


@pytest.fixture(scope="session")
def disk_images(tmp_path_factory: pytest.TempPathFactory) -> DiskImages:
    """One small disk in every format."""
    directory: Path = tmp_path_factory.mktemp("disk-images")
    return make_disk_images(directory)


@pytest.fixture
async def here() -> AsyncIterator[World]:
    async with world() as made:
        yield made


@pytest.fixture
def shelf(here: World, seaweed: S3Server, bucket: str, nginx: NginxServer) -> Shelf:
    return Shelf(here, seaweed, bucket, nginx)
