"""What the operator decides about one Hyper-V host, and which shares are which of its folders. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hypervisors.contract import OperationUnsupported
from hypervisors.hyperv.endpoint import Endpoint
from stores.backends.smb_place import SmbPlace

_WINDOWS_PATH = re.compile(r"([A-Za-z]:|\\\\[^\\/]+\\[^\\/]+)(\\[^\\/]+)*\\?")


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervHostSettings:
    r"""`shares`: from `server/share` or `server/share/folder`, as pools name them, to the path by which the machines of this
    host have what lies there: `D:\vms`, `C:\ClusterStorage\Volume1`, `\\server\share`. ValueError for what is none."""

    name: str
    """For messages."""

    endpoint: Endpoint
    shares: Mapping[str, str] = field(default_factory=dict)

    poll_s: float = 2.0
    """Between looks at what the host does by itself."""

    def __post_init__(self) -> None:
        for path in self.shares.values():
            check_path(path)


def check_path(path: str) -> None:
    """ValueError for what is no path of a host."""
    if not _WINDOWS_PATH.fullmatch(path):
        raise ValueError(f"{path} is no path as a Hyper-V host has it, like D:\\vms")


@dataclass(frozen=True, slots=True)
class HostFolder:
    """A folder of a share as one host has it."""

    host: HypervHostSettings
    path: str

    def of(self, name: str) -> str:
        """A file in it."""
        return self.path + "\\" + name.replace("/", "\\")

    def name_of(self, path: str) -> str | None:
        """The other way round; None for a file that is not in it. Capitals do not matter."""
        begin = self.path + "\\"
        return path[len(begin) :].replace("\\", "/") if path.lower().startswith(begin.lower()) else None


def folder_of(place: SmbPlace, hosts: Sequence[HypervHostSettings]) -> HostFolder:
    """The longest entry counts. `OperationUnsupported` where no host has the share."""
    asked = place.name.lower()
    found: tuple[int, HostFolder] | None = None
    for host in hosts:
        for share, path in host.shares.items():
            known = share.strip("/").lower()
            if (asked + "/").startswith(known + "/") and (found is None or len(known) > found[0]):
                rest = place.name[len(known) :].replace("/", "\\")
                found = (len(known), HostFolder(host, path.rstrip("\\") + rest))
    if found is None:
        raise OperationUnsupported(
            f"no Hyper-V host is configured to have the share {place.name}: add it to `shares` of the host that has it",
            share=place.name,
        )
    return found[1]
