"""A fake XenServer pool for the tests of a module, and ways into it."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from tests.doubles.xapi import Remote, Settings, process
from tests.flows.fake_xapi.tools import Curl


@pytest.fixture(scope="module")
def pool() -> Iterator[Remote]:
    """In a process of its own; its path has no underscore, which XAPI's client takes for a slash."""
    folder = Path("/tmp") / f"xapi-{uuid.uuid4().hex}"
    try:
        with process(folder, Settings(gc_delay_s=3600.0, data_destroy_wait_s=0.2, qcow2=True)) as remote:
            yield remote
        assert list(folder.iterdir()) == []
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def session(pool: Remote) -> Iterator[Any]:
    with XenAPI.Session(pool.access.urls[0], ignore_ssl=True) as session:
        session.xenapi.login_with_password(pool.access.user, pool.access.password, "1.0", "tests")
        yield session
        session.xenapi.session.logout()
    assert pool.control("left")["sessions"] == []


@pytest.fixture
def api(session: Any) -> Any:
    return session.xenapi


@pytest.fixture
def srs(pool: Remote) -> dict[str, str]:
    found: dict[str, str] = pool.control("srs")
    return found


@pytest.fixture
def curl(pool: Remote, session: Any, tmp_path: Path) -> Curl:
    return Curl(pool, session, tmp_path)
