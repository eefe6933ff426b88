"""Fixtures of the flow tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.buckets import empty, made_bucket
from tests.doubles.backups import Lab, lab
from tests.doubles.disk_images import DiskImages, make_disk_images
from tests.doubles.shelf import Shelf
from tests.doubles.world import World, world
from tests.servers import NginxServer, S3Server


@pytest.fixture(scope="session")
def disk_images(tmp_path_factory: pytest.TempPathFactory) -> DiskImages:
    """One small disk in every format."""
    directory: Path = tmp_path_factory.mktemp("disk-images")
    return make_disk_images(directory)


@pytest.fixture(scope="module")
def bucket_of_module(seaweed: S3Server) -> Iterator[tuple[Any, str]]:
    with made_bucket(seaweed) as made:
        yield made


@pytest.fixture
def emptied_bucket(bucket_of_module: tuple[Any, str]) -> Iterator[tuple[Any, str]]:
    """A client and the name of a bucket that is empty at the start of each test."""
    yield bucket_of_module
    empty(*bucket_of_module)


@pytest.fixture
async def here() -> AsyncIterator[World]:
    async with world() as made:
        yield made


@pytest.fixture
def shelf(here: World, seaweed: S3Server, bucket: str, nginx: NginxServer) -> Shelf:
    return Shelf(here, seaweed, bucket, nginx)


@pytest.fixture
async def chain(shelf: Shelf) -> Lab:
    """Two backups in S3, the second of what changed since the first."""
    made = await lab(shelf.here, shelf.s3())
    await made.snapshot("monday")
    await made.back_up("monday")
    made.write("write -P 7 2M 64k")
    await made.snapshot("tuesday")
    await made.incremental("tuesday", "monday")
    return made
