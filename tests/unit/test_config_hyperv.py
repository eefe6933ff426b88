"""What the configuration says of Hyper-V hosts, and what is refused there, in words that help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent.cli import app
from agent.config_load import ConfigError, load
from agent.config_text import toml_value
from agent.wiring import build, hyperv_hosts
from hypervisors.contract import HypervisorType, OperationUnsupported
from hypervisors.hyperv.endpoint import Auth
from hypervisors.hyperv.settings import HostFolder, HypervHostSettings, folder_of
from stores.backends.smb_place import SmbPlace

ONE: dict[str, Any] = {
    "name": "one",
    "address": "192.0.2.1",
    "user": "LAB\\agent",
    "password_file": "/etc/p",
    "shares": {"files/vms": "D:\\vms"},
}
PIN = "ab" * 32


def written(directory: Path, *hosts: dict[str, Any], more: str = "") -> Path:
    path = directory / "storage-agent.toml"
    path.write_text(f"{more}[hyperv]\nhosts = {toml_value(hosts)}\n")
    return path


def settings(file: Path) -> list[HypervHostSettings]:
    return list(hyperv_hosts(load(file, {}).config))


def folder(hosts: list[HypervHostSettings], *parts: str, server: str = "files") -> str:
    share, *folders = parts
    return folder_of(SmbPlace(server, share, tuple(folders)), hosts).path


def test_an_agent_without_hosts_has_no_handler_for_hyperv(tmp_path: Path) -> None:
    assert settings(written(tmp_path)) == []
    assert [handler.type for handler in build(load(written(tmp_path), {}).config).handlers] == [HypervisorType.KVM]


def test_building_opens_and_reads_nothing(tmp_path: Path) -> None:
    """Neither the password file nor the CA is there."""
    told = {**ONE, "ca_file": "/none/ca.pem", "password_file": "/none/password"}
    parts = build(load(written(tmp_path, told), {"STORAGE_AGENT__AGENT__HYPERVISOR": "Hyperv"}).config)
    assert [handler.type for handler in parts.handlers] == [HypervisorType.KVM, HypervisorType.HYPERV]


def test_every_option_reaches_the_host(tmp_path: Path) -> None:
    told = {**ONE, "port": 15986, "ca_file": "/etc/ca.pem", "fingerprint": PIN, "configuration": "Agent"}
    (host,) = settings(written(tmp_path, told))
    at = host.endpoint
    assert (host.name, str(at), at.auth, at.user) == ("one", "192.0.2.1:15986", Auth.NEGOTIATE, "LAB\\agent")
    assert (at.password, at.ca_file) == (Path("/etc/p"), Path("/etc/ca.pem"))
    assert (at.fingerprint, at.configuration) == (bytes.fromhex(PIN), "Agent")
    with_certificate = {"auth": "certificate", "certificate": "/etc/c", "key": "/etc/k"}
    (host,) = settings(written(tmp_path, {"name": "h", "address": "h", "shares": ONE["shares"], **with_certificate}))
    assert (host.endpoint.auth, host.endpoint.certificate, host.endpoint.key) == (
        Auth.CERTIFICATE,
        Path("/etc/c"),
        Path("/etc/k"),
    )


def test_a_share_is_found_by_the_longest_entry(tmp_path: Path) -> None:
    two = {**ONE, "name": "two", "shares": {"Files/vms/fast": "C:\\ClusterStorage\\Volume1\\", "nas/x": "\\\\nas\\x"}}
    hosts = settings(written(tmp_path, ONE, two))
    assert folder(hosts, "vms") == "D:\\vms"
    assert folder(hosts, "VMS", "a", "b") == "D:\\vms\\a\\b"
    assert folder(hosts, "vms", "fast", "a") == "C:\\ClusterStorage\\Volume1\\a"
    assert folder(hosts, "vms", "faster") == "D:\\vms\\faster"
    assert folder(hosts, "x", "y", server="nas") == "\\\\nas\\x\\y"
    with pytest.raises(OperationUnsupported, match="files/other"):
        folder(hosts, "other")


def test_names_on_the_share_and_on_the_host(tmp_path: Path) -> None:
    at = HostFolder(settings(written(tmp_path, ONE))[0], "D:\\vms")
    assert at.of("a/b.vhdx") == "D:\\vms\\a\\b.vhdx"
    assert at.name_of("d:\\VMS\\a\\B.avhdx") == "a/B.avhdx"
    assert at.name_of("D:\\vmsother\\b.avhdx") is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"password_file": None}, "needs a user and a password_file"),
        ({"auth": "certificate"}, "needs a certificate and its key"),
        ({"shares": {"files": "D:\\vms"}}, "files is no share"),
        ({"shares": {"files/vms": "/srv/vms"}}, "/srv/vms is no path"),
        ({"shares": {"files/vms": "vms"}}, "vms is no path"),
        ({"shares": {}}, "shares"),
        ({"fingerprint": "abc"}, "fingerprint"),
        ({"auth": "basic"}, "negotiate"),
    ],
)
def test_what_is_wrong_with_a_host(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    told = {key: value for key, value in {**ONE, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=text):
        load(written(tmp_path, told), {})


def test_what_is_wrong_with_several(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a name of its own"):
        load(written(tmp_path, ONE, ONE), {})
    with pytest.raises(ConfigError, match="files/vms is a share of two hosts"):
        load(written(tmp_path, ONE, {**ONE, "name": "two", "shares": {"FILES/vms/": "E:\\"}}), {})


def test_an_agent_of_hyperv_needs_a_host(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no host"):
        load(written(tmp_path), {"STORAGE_AGENT__AGENT__HYPERVISOR": "Hyperv"})


def test_a_password_is_looked_for_by_check_config(tmp_path: Path) -> None:
    password = tmp_path / "password"
    file = written(tmp_path, {**ONE, "password_file": str(password)})
    missing = CliRunner().invoke(app, ["check-config", "--config", str(file)])
    assert missing.exit_code != 0
    assert str(password) in missing.output
    password.write_text("secret\n")
    assert CliRunner().invoke(app, ["check-config", "--config", str(file)]).exit_code == 0
