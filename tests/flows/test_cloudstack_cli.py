"""`storage-agent cloudstack`, as operators run it, against a management server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent.cli import app
from tests.doubles.management_server.attached import API
from tests.doubles.management_server.authority import Authority, shared_authority
from tests.doubles.management_server.server import ManagementServer

PROGRAM = str(Path(sys.executable).with_name("storage-agent"))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return shared_authority()


@pytest.fixture
async def server(authority: Authority) -> AsyncIterator[ManagementServer]:
    async with ManagementServer(authority, ping_interval=1) as made:
        yield made
        assert made.violations == []


def configure(directory: Path, pinned: Authority, *servers: str, roles: str = '["routing"]') -> Path:
    authority = directory / "ca.pem"
    authority.write_bytes(pinned.pem)
    file = directory / "storage-agent.toml"
    file.write_text(
        f"""
        [agent]
        state_dir = "{directory / "state"}"
        [cloudstack]
        servers = {json.dumps(servers)}
        roles = {roles}
        zone = "1"
        pod = "1"
        cluster = "1"
        ca_file = "{authority}"
        """
    )
    return file


async def run(*words: str, config: Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        *(PROGRAM, "cloudstack", *words, "--config", str(config)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def run_here(*words: str, config: Path) -> tuple[int, str, str]:
    """The same inside of this process, which saves the imports; for what sets up no logs."""
    done = await asyncio.to_thread(CliRunner().invoke, app, ["cloudstack", *words, "--config", str(config)])
    return done.exit_code, done.stdout, done.stderr


async def run_json(*words: str, config: Path) -> tuple[int, list[Any]]:
    code, out, _ = await run(*words, "--json", config=config)
    return code, [json.loads(line) for line in out.splitlines()]


async def test_ping_shows_who_is_there(server: ManagementServer, tmp_path: Path) -> None:
    config = configure(tmp_path, server.authority, server.address, "127.0.0.1:1")
    code, out, _ = await run_here("ping", "--json", config=config)
    first, second = json.loads(out)["servers"]
    assert code == 0
    assert (first["server"], first["ok"], first["certificate"]) == (
        server.address,
        True,
        "CN=ca.cloudstack.apache.org",
    )
    assert not second["ok"]
    assert "no connection" in second["error"]
    assert server.agents == []
    assert server.discarded == []


async def test_ping_of_a_stranger_fails(server: ManagementServer, tmp_path: Path) -> None:
    code, out, _ = await run_here("ping", config=configure(tmp_path, Authority(), server.address))
    assert code == 3
    assert "neither pinned nor signed" in out


async def test_login_check(server: ManagementServer, tmp_path: Path) -> None:
    config = configure(tmp_path, server.authority, server.address)
    code, (told,) = await run_json("login-check", config=config)
    assert (code, told["ok"]) == (0, True)
    (agent,) = server.agents
    assert agent.startup[0][1]["dataCenter"] == "1"
    assert agent.reason == "shutdown: sig.kill"


async def test_login_check_says_why_not(server: ManagementServer, tmp_path: Path) -> None:
    server.refuse = "you have sent incorrect data center"
    code, _, err = await run("login-check", config=configure(tmp_path, server.authority, server.address))
    assert code == 4
    assert "LinkRejected" in err
    assert "incorrect data center" in err


async def test_trace_masks_secrets(server: ManagementServer, tmp_path: Path) -> None:
    store = {"com.cloud.agent.api.to.S3TO": {"accessKey": "AKIA", "secretKey": "visible", "bucketName": "b"}}
    server.on_connect = [(f"{API}GetStorageStatsCommand", {"store": store, "localPath": "/x"})]
    config = configure(tmp_path, server.authority, server.address, roles='["routing", "secondary-storage"]')
    code, lines = await run_json("trace", "--seconds", "2", "--role", "secondary-storage", config=config)
    assert code == 0
    names = [next(iter(line["items"][0])).rpartition(".")[2] for line in lines]
    assert names[:4] == [
        "StartupSecondaryStorageCommand",
        "StartupAnswer",
        "GetStorageStatsCommand",
        "GetStorageStatsAnswer",
    ]
    assert {"ReadyCommand", "PingStorageCommand"} <= set(names)
    asked = lines[2]["items"][0][f"{API}GetStorageStatsCommand"]
    assert (lines[2]["direction"], asked["store"]["secretKey"]) == ("received", "***")
    assert "visible" not in json.dumps(lines)
    answered = next(iter(lines[3]["items"][0].values()))
    assert "nothing is run" in answered["details"]


async def test_nothing_is_configured(tmp_path: Path) -> None:
    file = tmp_path / "storage-agent.toml"
    file.write_text("")
    code, _, err = await run_here("ping", config=file)
    assert code == 2
    assert "cloudstack.servers" in err


async def test_role_that_is_not_configured(server: ManagementServer, tmp_path: Path) -> None:
    config = configure(tmp_path, server.authority, server.address)
    code, _, err = await run_here("trace", "--role", "secondary-storage", config=config)
    assert code == 2
    assert "none of cloudstack.roles" in err


async def test_check_config_looks_at_the_certificates(tmp_path: Path) -> None:
    config = configure(tmp_path, Authority(), "ms1.example.org")
    done = await asyncio.to_thread(CliRunner().invoke, app, ["check-config", "--config", str(config)])
    assert done.exit_code == 0
    (tmp_path / "ca.pem").write_text("nothing")
    done = await asyncio.to_thread(CliRunner().invoke, app, ["check-config", "--config", str(config)])
    assert done.exit_code == 4
    assert "cloudstack.ca_file" in done.stderr
