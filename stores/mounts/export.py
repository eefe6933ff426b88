"""What may be mounted, as values: an export, and options from an allow-list. Looks at nothing but text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stores.errors import InvalidReference, PolicyRefused

FORCED = ("nosuid", "nodev", "noexec", "retry=0")
"""What holds for every mount: images are no programs, and the agent itself decides when to try again."""

_NUMBER = re.compile(r"\d{1,8}")
_HOST = re.compile(r"[0-9A-Za-z]([0-9A-Za-z.-]{0,251}[0-9A-Za-z])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]+")
_FLAG = re.compile("")
_VERSION = re.compile(r"3|4|4\.[0-2]")

ALLOWED: Mapping[str, re.Pattern[str]] = {
    **dict.fromkeys(("hard", "soft", "softerr", "ac", "noac", "lock", "nolock", "cto", "nocto", "noresvport"), _FLAG),
    **dict.fromkeys(("resvport", "sharecache", "nosharecache", "noatime", "nodiratime", "relatime", "rdirplus"), _FLAG),
    **dict.fromkeys(("nordirplus", "bg", "fg", "tcp", "rw"), _FLAG),
    **dict.fromkeys(("port", "timeo", "retrans", "rsize", "wsize", "nconnect", "actimeo", "acregmin"), _NUMBER),
    **dict.fromkeys(("acregmax", "acdirmin", "acdirmax", "mountport"), _NUMBER),
    **dict.fromkeys(("vers", "nfsvers"), _VERSION),
    "minorversion": re.compile(r"[0-2]"),
    "proto": re.compile(r"tcp6?|rdma6?"),
    "sec": re.compile(r"sys|krb5[ip]?"),
    "lookupcache": re.compile(r"all|none|pos|positive"),
    "local_lock": re.compile(r"all|none|flock|posix"),
}
"""Options that a command or the configuration may ask for (nfs(5)), and what their values may be. None of them names a file of
this host, gives a mount another owner, or lets programs on it have privileges."""


@dataclass(frozen=True, slots=True)
class Export:
    """`path` of the NFS server `host`, mounted with `options`. Made by `export`, which checks."""

    host: str
    path: str
    options: tuple[str, ...]

    @property
    def source(self) -> str:
        """As mount.nfs and the kernel's table of mounts name it."""
        return f"[{self.host}]:{self.path}" if ":" in self.host else f"{self.host}:{self.path}"

    @property
    def name(self) -> str:
        """Of a directory: the same for the same export and options, on every host."""
        told = "\0".join((self.host.lower(), self.path, *sorted(self.options)))
        return "nfs-" + hashlib.sha256(told.encode()).hexdigest()[:16]


def export(host: str, path: str, options: Sequence[str] = ()) -> Export:
    """`InvalidReference` for what is no host or path, `PolicyRefused` for an option that nobody may ask for."""
    host = host.removeprefix("[").removesuffix("]")
    if not _HOST.fullmatch(host):
        raise InvalidReference("an NFS server is named by a host name or an address", host=host[:200])
    parts = [part for part in path.split("/") if part]
    if not path.startswith("/") or ".." in parts or "." in parts or not path.isprintable() or len(path) > 1024:
        raise InvalidReference("an NFS export is named by an absolute path without '..'", path=path[:200])
    return Export(host, "/" + "/".join(parts), checked(options))


def checked(options: Sequence[str]) -> tuple[str, ...]:
    """The options as they are given, without empty ones and those that hold anyway. `PolicyRefused` for any other than those of
    `ALLOWED`."""
    wanted = [option.strip() for option in options]
    for option in wanted:
        name, _, value = option.partition("=")
        pattern = ALLOWED.get(name)
        if option and option not in FORCED and (pattern is None or not pattern.fullmatch(value)):
            raise PolicyRefused(
                f"the mount option {option[:80]!r} is not among those that may be asked for; leave it out, or mount the"
                " export yourself",
                option=option[:80],
            )
    return tuple(option for option in wanted if option and option not in FORCED)


def split_options(text: str) -> tuple[str, ...]:
    """Of one text with commas, as CloudStack and fstab(5) have them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def allowed(wanted: Export, among: Sequence[str]) -> None:
    """`PolicyRefused` unless `among` (`host:/path`, with all below that path) has it. Empty: everything is allowed."""
    if among and not any(_covers(one, wanted) for one in among):
        raise PolicyRefused(
            f"{wanted.source} is not among the exports that may be mounted; add it to the setting nfs.exports",
            export=wanted.source,
        )


def _covers(pattern: str, wanted: Export) -> bool:
    host, _, path = pattern.rpartition(":")
    path = path.rstrip("/")
    return host.strip("[]").lower() == wanted.host.lower() and (
        wanted.path == path or wanted.path.startswith(path + "/")
    )
