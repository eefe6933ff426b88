"""The agent as a Debian package, made of this tree as systemd/README.md tells packagers, with what it imports inside of it."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

from tests.guest import run

ROOT = Path(__file__).parents[2]
INSIDE = Path("usr/lib/storage-agent")

LAUNCHER = f"""#!/usr/bin/python3
import sys
sys.path.insert(0, "/{INSIDE}")
from agent.cli import main
main()
"""

CONTROL = """Package: storage-agent
Version: 0.1.0
Architecture: amd64
Maintainer: storage-agent
Depends: python3, qemu-utils
Description: disk images between stores and hypervisors
"""

AFTERWARDS = """#!/bin/sh
set -e
systemd-sysusers
systemd-tmpfiles --create
systemctl daemon-reload
"""


def package(build: Path) -> Path:
    """`storage-agent.deb`, made anew below `build/system`; what it imports is kept there for the next time."""
    home = build.resolve() / "system"
    root = home / "package"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(_imports(home), root / INSIDE)
    _pip("--no-deps", "--target", root / INSIDE, ROOT)
    shutil.rmtree(root / INSIDE / "bin", ignore_errors=True)
    _write(root / "usr/bin/storage-agent", LAUNCHER, 0o755)
    units = ROOT / "systemd"
    for unit in sorted(path for path in units.iterdir() if path.suffix in (".service", ".socket", ".timer")):
        _write(root / "usr/lib/systemd/system" / unit.name, unit.read_text())
    for kind in ("sysusers.d", "tmpfiles.d"):
        _write(root / "usr/lib" / kind / "storage-agent.conf", (units / kind / "storage-agent.conf").read_text())
    _write(root / "DEBIAN/control", CONTROL)
    _write(root / "DEBIAN/postinst", AFTERWARDS, 0o755)
    made = home / "storage-agent.deb"
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", root, made)  # unpacking takes long under emulation
    shutil.rmtree(root)
    return made


def _imports(home: Path) -> Path:
    """The libraries, in the versions of the tests."""
    pinned = ROOT / "requirements-dev.txt"
    key = hashlib.sha256(pinned.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()[:16]
    target = home / f"imports-{key}"
    if not target.exists():
        new = home / f"imports-{key}.new"
        shutil.rmtree(new, ignore_errors=True)
        _pip("--target", new, "--constraint", pinned, ROOT)
        for ours in ("agent", "hypervisors", "stores", "bin", *(path.name for path in new.glob("storage_agent-*"))):
            shutil.rmtree(new / ours)
        new.rename(target)
    return target


def _pip(*arguments: str | Path) -> None:
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # setuptools installs what it finds there, however old
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--root-user-action=ignore",
        *arguments,
    )


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
