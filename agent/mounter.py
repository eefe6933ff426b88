"""The other end of `AskedMounter`: a process of root's for one request, started by systemd for a connection.

The daemon runs without any capability, with mounts of its own: it can mount nothing, least of all where guests see it. This
process can, and therefore does as little as possible: it checks a request against the configuration, which is root's, as if
the daemon were an enemy, runs one tool, and ends. What a hostile daemon can get is an NFS export that the configuration
allows, right below `pools.mount_root`, where nothing is mounted yet, and without privileges, devices and programs on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.config import Config
from agent.mounting import TOLD
from stores.errors import InvalidReference, PolicyRefused, StorageError
from stores.mounts.export import Export, allowed, export
from stores.mounts.mount import Mounter, MountFailed
from stores.mounts.table import Mounted, read

REQUEST_LIMIT = 16 * 1024
"""Longest request in bytes."""

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Request:
    """What may be done, checked: an export to be mounted at `at`, or with None what is mounted there to be unmounted."""

    export: Export | None
    at: Path


def checked(line: bytes, config: Config, table: Mapping[Path, Mounted]) -> Request:
    """`PolicyRefused` or `InvalidReference` for anything that is not a daemon's business."""
    body = _object(line)
    if "unmount" in body:
        at = _place(body["unmount"], config)
        found = table.get(at)
        if found is None or not found.type.startswith("nfs"):
            raise PolicyRefused(f"no NFS export is mounted at {at}", directory=str(at))
        return Request(None, at)
    asked, at = body.get("mount"), _place(body.get("at"), config)
    if not isinstance(asked, dict) or not isinstance(asked.get("options"), list):
        raise InvalidReference("a request to mount has host, path and options")
    wanted = export(str(asked.get("host")), str(asked.get("path")), [str(option) for option in asked["options"]])
    allowed(wanted, config.nfs.exports)
    if at in table:
        raise PolicyRefused(f"something is mounted at {at} already", directory=str(at))
    return Request(wanted, at)


async def answer(
    line: bytes, config: Config, mounter: Mounter, table: Callable[[], Mapping[Path, Mounted]] = read
) -> bytes:
    """Does what the line asks for, and says so."""
    try:
        request = checked(line, config, table())
        if request.export is None:
            await mounter.unmount(request.at)
        else:
            await mounter.mount(request.export, request.at)
    except StorageError as error:
        kind = error.kind if error.kind in TOLD else MountFailed.__name__
        return json.dumps({"error": kind, "message": error.message}).encode() + b"\n"
    return b"{}\n"


def _object(line: bytes) -> dict[str, Any]:
    try:
        body = json.loads(line)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise InvalidReference("a request is one JSON object")
    return body


def _place(text: object, config: Config) -> Path:
    """A directory right below `pools.mount_root`, by a plain name: neither links nor other mounts can lead elsewhere."""
    at = Path(str(text))
    if at.parent != config.pools.mount_root or not _NAME.fullmatch(at.name):
        raise PolicyRefused(
            f"{str(text)[:200]!r} is not a directory right below {config.pools.mount_root}", directory=str(text)[:200]
        )
    if at.is_symlink():
        raise PolicyRefused(f"{at} is a symbolic link", directory=str(at))
    return at
