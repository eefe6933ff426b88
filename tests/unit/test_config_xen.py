"""What the configuration says of pools of XenServer hosts, and what is refused there, in words that help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme
from typer.testing import CliRunner

from agent.cli import app
from agent.config_load import ConfigError, load
from agent.config_text import toml_value
from agent.originator import originator
from agent.wiring import build, xen_pools
from hypervisors.contract import HypervisorType
from hypervisors.xen.config import XenPoolSettings

ONE: dict[str, Any] = {"name": "one", "hosts": ["https://192.0.2.1"], "password_file": "/etc/p"}
PIN = "ab" * 32


def written(directory: Path, *pools: dict[str, Any], more: str = "") -> Path:
    path = directory / "storage-agent.toml"
    path.write_text(f"[xen]\npools = {toml_value(pools)}\n{more}")
    return path


def settings(file: Path) -> list[XenPoolSettings]:
    return list(xen_pools(load(file, {}).config))


def test_an_agent_without_pools_has_no_handler_for_xen(tmp_path: Path) -> None:
    assert settings(written(tmp_path)) == []
    assert [handler.type for handler in build(load(written(tmp_path), {}).config).handlers] == [HypervisorType.KVM]


def test_every_option_reaches_the_pool(tmp_path: Path) -> None:
    times = {"connect_timeout_s": 1, "call_timeout_s": 2, "attach_timeout_s": 3, "stall_timeout_s": 4, "grace_s": 5}
    pinned = {"https://192.0.2.1": PIN}
    told = {**ONE, **times, "lock_s": 60, "fingerprints": pinned, "ca_file": "/etc/ca.pem", "user": "agent"}
    (pool,) = settings(written(tmp_path, told, more='originator = "me"\n'))
    assert (pool.name, [str(host) for host in pool.hosts], pool.user) == ("one", ["192.0.2.1"], "agent")
    assert (pool.hosts[0].fingerprint, pool.password, pool.ca_file) == (
        bytes.fromhex(PIN),
        Path("/etc/p"),
        Path("/etc/ca.pem"),
    )
    assert (pool.connect_timeout_s, pool.call_timeout_s, pool.head_timeout_s, pool.stall_timeout_s) == (1, 2, 3, 4)
    assert (pool.grace_s, pool.lock_s, pool.originator) == (5, 60, "me")


def test_building_opens_and_reads_nothing(tmp_path: Path) -> None:
    """Neither the password file nor the CA is there."""
    told = {**ONE, "ca_file": "/none/ca.pem", "password_file": "/none/password"}
    parts = build(load(written(tmp_path, told), {"STORAGE_AGENT__AGENT__HYPERVISOR": "XenServer"}).config)
    assert [handler.type for handler in parts.handlers] == [HypervisorType.KVM, HypervisorType.XEN]


def test_the_socket_of_a_host_needs_no_password(tmp_path: Path) -> None:
    (pool,) = settings(written(tmp_path, {"name": "here", "hosts": ["unix:/var/lib/xcp/xapi"]}))
    assert pool.hosts[0].socket == Path("/var/lib/xcp/xapi")


@pytest.mark.parametrize(
    ("pools", "expected"),
    [
        ([{"name": "a", "password_file": "/p"}], "pools.0.hosts: Field required"),
        ([{**ONE, "hosts": []}], "pools.0.hosts: "),
        ([{**ONE, "hosts": ["http://h"]}], "pools.0.hosts: a XenServer host is https://ADDRESS[:PORT] or unix:/PATH"),
        ([{**ONE, "hosts": ["https://u:p@h"]}], "pools.0.hosts: a XenServer host is https://ADDRESS[:PORT]"),
        ([{**ONE, "hosts": ["https://h", "https://h"]}], "pools.0.hosts: names a host twice"),
        ([{"name": "a", "hosts": ["https://h"]}], "pools.0: pool a needs a password_file"),
        ([{**ONE, "password_file": "p"}], "pools.0.password_file: needs an absolute path"),
        ([{**ONE, "password": "x"}], "pools.0.password: Extra inputs are not permitted"),
        ([{**ONE, "fingerprints": {"https://h": PIN}}], "pools.0: fingerprints names https://h, which hosts does not"),
        ([{**ONE, "fingerprints": {"https://192.0.2.1": "ab"}}], "pools.0: a certificate's fingerprint is SHA-256"),
        ([{**ONE, "lock_s": 1}], "pools.0.lock_s: "),
        ([ONE, {**ONE, "hosts": ["https://h"]}], "pools: every pool needs a name of its own"),
        ([ONE, {**ONE, "name": "two"}], "pools: https://192.0.2.1 is named in two pools"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, pools: list[dict[str, Any]], expected: str) -> None:
    file = written(tmp_path, *pools)
    with pytest.raises(ConfigError) as refused:
        load(file, {})
    assert refused.value.message.splitlines()[0].startswith(f"{file}: xen.{expected}")


@pytest.mark.parametrize(
    ("pools", "more", "expected"),
    [
        ([], "", "xen.pools names no pool of hosts: it needs one with name, hosts and password_file"),
        (
            [ONE],
            '[cloudstack]\nservers = ["ms"]\nzone = "1"\npod = "1"\ncluster = "1"\nca_file = "/ca"\n',
            "CloudStack's management servers talk to XenServer's hosts themselves",
        ),
    ],
)
def test_an_agent_for_xen_needs_pools_and_is_no_host_of_cloudstack(
    tmp_path: Path, pools: list[dict[str, Any]], more: str, expected: str
) -> None:
    file = written(tmp_path, *pools, more=more)
    with pytest.raises(ConfigError, match=expected):
        load(file, {"STORAGE_AGENT__AGENT__HYPERVISOR": "XenServer"})


def test_what_a_pool_names_is_looked_at_before_a_start(tmp_path: Path) -> None:
    password, ca = tmp_path / "password", tmp_path / "ca.pem"
    told = {**ONE, "password_file": str(password), "ca_file": str(ca)}
    file = written(tmp_path, told, more=f'[agent]\nstate_dir = "{tmp_path}"\n')

    def checked() -> str:
        done = CliRunner().invoke(app, ["check-config", "--config", str(file)])
        return done.stdout + done.stderr

    assert f"ca_file {ca} is not a readable PEM bundle" in checked()
    ca.write_text(trustme.CA().cert_pem.bytes().decode())
    assert f"cannot be read from {password}: No such file" in checked()
    password.write_text("secret enough\n")
    assert checked() == f"ok: {file}\n"


# ------------------------------------------------------------------------------------------------------- originator


def test_the_originator_is_the_same_after_a_restart_and_nobody_elses(tmp_path: Path) -> None:
    machine, other = tmp_path / "machine-id", tmp_path / "other"
    machine.write_text("0123456789abcdef0123456789abcdef\n")
    other.write_text("fedcba9876543210fedcba9876543210\n")

    def name(state: str = "/var/lib/a", of: Path = machine, host: str = "gw 1") -> str:
        return originator(Path(state), machine_id=of, host=host)

    assert name() == name()
    assert name().startswith("storage-agent@gw-1/")
    assert len({name(), name("/var/lib/b"), name(of=other), name(host="gw2"), name(of=tmp_path / "none")}) == 5
    assert "0123456789abcdef" not in name()


def test_the_originator_is_made_where_none_is_given(tmp_path: Path) -> None:
    (pool,) = settings(written(tmp_path, ONE, more='[agent]\nstate_dir = "/srv/state"\n'))
    assert pool.originator == originator(Path("/srv/state"))
