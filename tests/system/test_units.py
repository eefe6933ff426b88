"""The units as systemd itself judges them, without running it."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli import app

UNITS = Path(__file__).parents[2] / "systemd"
FILES = sorted(path for path in UNITS.rglob("*") if path.suffix in (".service", ".socket", ".timer", ".conf"))


NAMES = [path.name for path in FILES if path.suffix != ".conf"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system in which the package is installed, with as much of systemd's as the units refer to."""
    installed = tmp_path / "usr/lib/systemd/system"
    installed.mkdir(parents=True)
    for name in NAMES:
        shutil.copy(UNITS / name, installed)
    for kind in ("sysusers.d", "tmpfiles.d"):
        shutil.copytree(UNITS / kind, tmp_path / "usr/lib" / kind)
    for target in Path("/usr/lib/systemd/system").glob("*.target"):
        shutil.copy(target, installed, follow_symlinks=True)
    command = tmp_path / "usr/bin/storage-agent"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\n")
    return tmp_path


MOUNTER = "storage-agent-mounter@.service"


def run(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(arg) for arg in argv], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("unit", NAMES)
def test_systemd_has_nothing_to_say_about_the_units(root: Path, unit: str) -> None:
    done = run("systemd-analyze", "verify", "--man=no", f"--root={root}", unit)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_verification_would_notice_a_mistake(root: Path) -> None:
    unit = root / "usr/lib/systemd/system/storage-agent.service"
    unit.write_text(unit.read_text().replace("ProtectSystem=", "ProtectSystems="))
    assert "ProtectSystems" in run("systemd-analyze", "verify", "--man=no", f"--root={root}", unit.name).stderr


@pytest.mark.parametrize("unit", [name for name in NAMES if name.endswith(".service") and name != MOUNTER])
def test_the_sandbox_is_tight(root: Path, unit: str) -> None:
    done = run("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", f"--root={root}", unit)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(rf"Overall exposure level for {re.escape(unit)}: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    assert float(found[1]) < 2.0


def test_what_mounts_has_the_mounts_of_the_host_and_little_else() -> None:
    """Any option that gives a service mounts of its own hides what it mounts from daemon and guests (systemd.exec(5))."""
    service = _parsed(MOUNTER)["Service"]
    of_its_own = {
        "ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateUsers", "ProtectProc",
        "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ReadWritePaths",
        "ReadOnlyPaths", "InaccessiblePaths", "TemporaryFileSystem", "BindPaths", "RootDirectory", "MountFlags",
        "StateDirectory", "DynamicUser",
    }  # fmt: skip
    assert not of_its_own & set(service)
    capabilities = {"CAP_SYS_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_DAC_OVERRIDE"}
    assert set(service["CapabilityBoundingSet"].split()) == capabilities
    assert service["NoNewPrivileges"] == "yes"
    socket = _parsed("storage-agent-mounter.socket")["Socket"]
    assert (socket["SocketUser"], socket["SocketGroup"], socket["SocketMode"]) == ("storage-agent", "root", "0600")


def test_the_sandbox_lets_the_agent_work(root: Path) -> None:
    """What must not be tightened away: see the reasons in the unit."""
    report = run(
        "systemd-analyze", "security", "--offline=true", "--json=short", f"--root={root}", "storage-agent.service"
    )
    rated = {entry["json_field"]: entry["exposure"] for entry in json.loads(report.stdout)}
    assert rated["PrivateNetwork"] not in (None, "0"), "stores are on the network"
    assert rated["PrivateUsers"] not in (None, "0"), "roles go by the peer credentials of other users"


def test_sysusers_creates_the_user(root: Path) -> None:
    done = run("systemd-sysusers", f"--root={root}")
    assert done.returncode == 0, done.stderr
    user = next(line for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("storage-agent:"))
    assert user.endswith(":Storage agent:/var/lib/storage-agent:/usr/sbin/nologin")
    assert "storage-agent:" in (root / "etc/group").read_text()


def test_tmpfiles_creates_the_directories(root: Path) -> None:
    assert run("systemd-sysusers", f"--root={root}").returncode == 0
    done = run("systemd-tmpfiles", "--create", f"--root={root}", "storage-agent.conf")
    assert (done.returncode, done.stderr) == (0, "")
    modes = {path: (root / path).stat().st_mode & 0o7777 for path in (
        "run/storage-agent", "var/lib/storage-agent", "var/lib/storage-agent/pools", "var/cache/storage-agent",
        "etc/storage-agent", "etc/storage-agent/storage-agent.d",
    )}  # fmt: skip
    assert list(modes.values()) == [0o755, 0o750, 0o2770, 0o700, 0o750, 0o750]


def entries(path: Path) -> Iterator[tuple[str, str]]:
    """(line, line before it) of every line that says something."""
    before = ""
    for line in path.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            yield line, before
        before = line


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(UNITS)))
def test_every_option_says_why_it_is_there(path: Path) -> None:
    lines = list(entries(path))
    assert lines
    bare = [line for line, before in lines if not before.startswith("#") and not _continues(line, before)]
    assert not bare


def _continues(line: str, before: str) -> bool:
    """tmpfiles entries of one directory share a comment."""
    return before.startswith("d ") and line.startswith(before.split(" ")[0] + " " + before.split(" ")[1] + "/")


def test_service_and_socket_agree() -> None:
    service, socket = (_parsed(f"storage-agent.{kind}") for kind in ("service", "socket"))
    assert socket["Socket"]["ListenStream"] == f"/run/{service['Service']['RuntimeDirectory']}/api.sock"
    assert socket["Socket"]["DirectoryMode"] == service["Service"]["RuntimeDirectoryMode"]
    assert socket["Socket"]["SocketGroup"] == service["Service"]["Group"]
    assert service["Service"]["ExecStart"] == "/usr/bin/storage-agent run"


def test_the_scrub_is_a_command_that_exists() -> None:
    service = _parsed("storage-agent-scrub.service")["Service"]
    _, *words = service["ExecStart"].split()
    asked = CliRunner().invoke(app, [*words, "--help"])
    assert asked.exit_code == 0, asked.output
    assert service["User"] == _parsed("storage-agent.service")["Service"]["User"]


def test_the_timer_starts_the_service_of_its_name() -> None:
    timer = _parsed("storage-agent-scrub.timer")
    assert "Unit" not in timer["Timer"]
    done = run("systemd-analyze", "calendar", timer["Timer"]["OnCalendar"])
    assert done.returncode == 0, done.stderr


def _parsed(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # the documented way to keep case
    parser.read(UNITS / name)
    return parser


def test_no_python_in_the_folder() -> None:
    """It would shadow the `systemd` package for whoever runs from the checkout."""
    assert not list(UNITS.rglob("*.py"))
