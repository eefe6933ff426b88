"""What the operator decides about stores: the parts of the configuration that concern them, already parsed.

Times are seconds, sizes are bytes. An invalid value is a `ValueError` when the object is made, never later.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Literal

SOCKET_PATH_LIMIT = 107
"""Longest path of a unix socket: sizeof(sockaddr_un.sun_path) on Linux less the closing NUL (unix(7))."""

SOCKET_NAME_LENGTH = 24
"""Room that the names of our own sockets need, slash included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlSettings:
    """Which URLs from commands may be contacted. Applied to every hop of a redirect."""

    allow_http: bool = False
    """Whether plain http is allowed beside https."""

    allow_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Address ranges allowed although they are private, loopback or link-local. Public ones are always allowed."""

    ports: tuple[int, ...] = (80, 443)
    """Ports that a URL may name. Empty: any."""

    max_redirects: int = 5

    external_fetch: bool = False
    """Whether a URL may be handed to a tool such as qemu, which resolves names and follows redirects by itself, unseen by
    this policy: only where every server that is allowed is trusted not to redirect into the private network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """How the cache is used, where there is one."""

    prefer: frozenset[str] = frozenset()
    """Store types (`storeType` of a `DataStoreTO`, such as `s3`) whose objects are read through the cache even where they
    could be read without: worth it where the same templates are deployed again and again."""

    wait_s: float = 60.0
    """How long to wait for room for what only the cache can give, when whoever asks does not say."""

    preferred_wait_s: float = 5.0
    """The same where the cache is only preferred: then the store itself is read."""

    def __post_init__(self) -> None:
        if self.wait_s < 0 or self.preferred_wait_s < 0:
            raise ValueError("wait_s and preferred_wait_s must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class SmbSettings:
    """How SMB servers are spoken to."""

    encryption: bool = True
    """Refuse servers that do not encrypt. Without it everything is signed, and encrypted only where a server asks for it."""

    authentication: Literal["negotiate", "kerberos", "ntlm"] = "negotiate"
    """Kerberos where there is a ticket or a realm, else NTLM; or one of the two alone."""

    credentials: Mapping[str, Path] = field(default_factory=dict)
    """Files with `username=`, `password=` and `domain=` (as mount.cifs has them) by `host` or `host/share`, for stores that
    come without credentials of their own. Read for each connection."""


class Wipe(StrEnum):
    """What becomes of the content of a thick logical volume that is removed."""

    NONE = "none"
    ZERO = "zero"  # overwritten with zeroes
    DISCARD = "discard"  # given back to the device, which may keep it a while


@dataclass(frozen=True, slots=True, kw_only=True)
class LvmSettings:
    """Volume groups as pools."""

    groups: frozenset[str] = frozenset()
    """Those that pools may be. Empty: none."""

    thin_pools: Mapping[str, str] = field(default_factory=dict)
    """By the group: the thin pool in it that its images are made in. Without one they are thick."""

    wipe: Wipe = Wipe.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Settings of all stores."""

    roots: tuple[Path, ...] = ()
    """Directories below which pools and `file://` stores may live. Empty: none may."""

    mount_root: Path = Path("/mnt")
    """`NetworkFilesystem` pools are mounted by the host at `<mount_root>/<pool uuid>`."""

    nfs_mounts: Mapping[str, Path] = field(default_factory=dict)
    """Where the host has mounted which secondary storage: `nfs://host/export` -> mount point."""

    notes_dir: Path = Path("/var/lib/storage-agent/notes")
    """Where what is known of disks is kept, by the uuid of their pool, if their storage has no room for it."""

    runtime_dir: Path = Path("/run/storage-agent")
    """Sockets of the bridge are made in its folder `nbd`."""

    file_mode: int = 0o660
    """Permissions of files that are written into directories."""

    urls: UrlSettings = UrlSettings()
    smb: SmbSettings = SmbSettings()
    lvm: LvmSettings = LvmSettings()
    cache: CacheSettings = CacheSettings()

    rbd_keyrings: Mapping[str, Path] = field(default_factory=dict)
    """Keyrings of Ceph by the pool's uuid or its name in Ceph, for pools that come without user and key."""

    ca_file: Path | None = None
    """PEM bundle of authorities to trust besides those of the system."""

    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    """How long a server may be silent in the middle of an answer."""

    connections: int = 4
    """Parallel connections for one transfer."""

    attempts: int = 5
    """How often a call is tried in all while its failures are transient; for a transfer, in a row without progress."""

    def __post_init__(self) -> None:
        directories = [*self.roots, self.mount_root, *self.nfs_mounts.values(), self.runtime_dir, self.notes_dir]
        for directory in directories:
            if not directory.is_absolute():
                raise ValueError(f"{directory}: must be an absolute path")
        if len(os.fsencode(self.runtime_dir)) + SOCKET_NAME_LENGTH > SOCKET_PATH_LIMIT:
            raise ValueError(
                f"runtime_dir {self.runtime_dir}: sockets below it would pass the {SOCKET_PATH_LIMIT} bytes that a unix"
                " socket's path may have; choose a shorter directory"
            )
        if self.attempts < 1 or self.connections < 1:
            raise ValueError("attempts and connections must be at least 1")
