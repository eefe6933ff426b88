"""The connection to a pool of XenServer hosts: passwords in files, and what is told of its hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hypervisors.contract import HostPool
from stores.errors import AccessDenied
from tests.doubles.xapi import Pool, Settings, running
from tests.xen_agent import write_password
from tests.xen_pools import connected

PASSWORD = "correct horse battery"


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[Pool]:
    async with running(tmp_path / "xapi", Settings(password=PASSWORD)) as fake:
        yield fake


async def test_a_password_is_what_its_file_holds_at_each_login(fake: Pool, tmp_path: Path) -> None:
    file = tmp_path / "password"
    write_password(file, "the old one")
    async with connected(fake, password=file) as pool:
        with pytest.raises(AccessDenied, match="correct the credentials"):
            await pool.call("host.get_all")
        write_password(file, PASSWORD)
        assert len(await pool.call("host.get_all")) == 2


@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file"), (b"\n", "is empty"), (b"\xff\xfe", "it is no text")]
)
async def test_a_password_file_that_is_none_is_named(
    fake: Pool, tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    async with connected(fake, password=file) as pool:
        with pytest.raises(AccessDenied, match=said) as refused:
            await pool.call("host.get_all")
    assert str(file) in refused.value.message


async def test_what_is_told_of_the_hosts_is_how_they_were_found_last(fake: Pool) -> None:
    async with connected(fake) as pool:
        assert pool.found == HostPool("fake", None, None)
        await pool.call("host.get_all")
        assert pool.found == HostPool("fake", fake.access.address(0), None)
        await fake.controls.make_coordinator(1)
        await fake.controls.drop_sessions()
        await pool.call("host.get_all")
        assert pool.found == HostPool("fake", fake.access.address(1), None)
        for host in (0, 1):
            await fake.controls.stop_host(host)
        with pytest.raises(Exception, match="host"):
            await pool.call("host.get_all")
        assert pool.found.coordinator is None
        assert pool.found.problem
        for host in (0, 1):
            await fake.controls.start_host(host)
        await pool.call("host.get_all")
        assert pool.found == HostPool("fake", fake.access.address(1), None)
