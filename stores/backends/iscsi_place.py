"""Where the LUNs of a pool are, and how their targets know us: from what a command says."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stores.errors import InvalidReference
from stores.paths import check_ref
from stores.secret import Secret
from stores.to import PrimaryDataStoreTO

PORT = 3260
"""iSCSI's own (RFC 7143, 14)."""

_TARGET = re.compile(r"(iqn\.[0-9]{4}-[0-9]{2}\.[a-z0-9.:-]+|eui\.[0-9A-Fa-f]{16}|naa\.[0-9A-Fa-f]{16,32})")
"""RFC 7143, 4.2.7, in the characters that RFC 3722 leaves."""

_LONGEST_TARGET = 223
_HOST = re.compile(r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]")
_LAST_LUN = 16383  # what the flat form of SAM-5, 4.7.3, can say


@dataclass(frozen=True, slots=True)
class IscsiPlace:
    """A portal, `host:port`, and how its targets know us: None where they ask for nothing."""

    portal: str
    user: str | None
    secret: Secret | None

    @property
    def host(self) -> tuple[str, int]:
        """The portal's, and its port."""
        host, _, port = self.portal.rpartition(":")
        return host.strip("[]"), int(port)


@dataclass(frozen=True, slots=True)
class Lun:
    target: str
    number: int


def place_of(to: PrimaryDataStoreTO) -> IscsiPlace:
    """`storageHost`, `storagePort` and the CHAP secrets in `details`, as CloudStack writes them; else the pool's host and port.
    `InvalidReference`."""
    details = to.details or {}

    def told(name: str) -> str | None:
        return details[name].reveal() if details.get(name) else None

    host, port = told("storageHost") or to.host or "", told("storagePort") or str(to.port or PORT)
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    if not _HOST.fullmatch(host) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidReference(f"pool {to.uuid} needs the host and the port of an iSCSI portal", pool=to.uuid)
    user, secret = told("chapInitiatorUsername"), details.get("chapInitiatorSecret")
    if (user is None) != (not secret):
        raise InvalidReference(
            f"pool {to.uuid} comes with a part of what CHAP needs: chapInitiatorUsername and chapInitiatorSecret",
            pool=to.uuid,
        )
    return IscsiPlace(f"{host}:{port}", user, secret or None)


def lun_of(ref: str) -> Lun:
    """Of `TARGET/NUMBER`. `InvalidReference`."""
    components = check_ref(ref)
    target, number = components if len(components) == 2 else ("", "")
    fits = _TARGET.fullmatch(target) and len(target) <= _LONGEST_TARGET
    if not fits or not number.isdecimal() or not number.isascii() or int(number) > _LAST_LUN:
        raise InvalidReference(f"a LUN is named by its target and its number, iqn.../0, and not {ref}", ref=ref)
    return Lun(target, int(number))
