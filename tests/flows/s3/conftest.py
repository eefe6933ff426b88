"""Fixtures of the tests of S3."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def bucket(emptied_bucket: tuple[Any, str]) -> str:
    """The name of a bucket that is empty at the start of each test."""
    return emptied_bucket[1]
