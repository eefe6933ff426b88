"""What kind of SR a primary store is to be, and what its hosts have to know to reach it. No I/O.

Keys of `device_config`: SM's drivers (NFSSR.py, EXTSR.py, LVHDSR.py, LVHDoISCSISR.py, ISOSR.py, each in CONFIGURATION).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stores.errors import InvalidReference
from stores.secret import Secret
from stores.to import PrimaryDataStoreTO

_KINDS = {
    "networkfilesystem": "nfs",
    "nfs": "nfs",
    "ext": "ext",
    "lvm": "lvm",
    "iscsilun": "lvmoiscsi",
    "iscsi": "lvmoiscsi",
    "lvmoiscsi": "lvmoiscsi",
    "iso": "iso",
}
"""Types of SR, by CloudStack's pool types and by SM's own names."""
MADE = tuple(sorted(set(_KINDS.values())))


@dataclass(frozen=True, slots=True)
class Plan:
    """`wipes`: making it formats the device. `probed`: the storage can be asked which SRs are there."""

    kind: str
    plain: Mapping[str, str]
    shared: bool = True
    content: str = "user"
    wipes: bool = False
    probed: bool = True
    password: Secret | None = field(default=None)

    def config(self) -> dict[str, str]:
        """The `device_config`, password in clear: for XAPI and nobody else."""
        return {**self.plain, **({"chappassword": self.password.reveal()} if self.password else {})}


def plan_of(to: PrimaryDataStoreTO) -> Plan | None:
    """None for a kind that is not made here, `InvalidReference` where something is missing."""
    kind = _KINDS.get(to.poolType.lower())
    match kind:
        case "nfs":
            return Plan(kind, {"server": _needed(to, "host"), "serverpath": _needed(to, "path")})
        case "ext" | "lvm":
            return Plan(kind, {"device": _needed(to, "path")}, shared=False, wipes=True)
        case "iso":
            location = f"{_needed(to, 'host')}:{_needed(to, 'path')}"
            return Plan(kind, {"location": location}, content="iso", probed=False)
        case "lvmoiscsi":
            return _iscsi(to)
    return None


def _iscsi(to: PrimaryDataStoreTO) -> Plan:
    """CloudStack writes the path as `/IQN/LUN`."""
    details = to.details or {}
    target = _needed(to, "path").strip("/").split("/")[0]
    user, password = details.get("chapInitiatorUsername"), details.get("chapInitiatorSecret")
    plain = {
        "target": _needed(to, "host"),
        "port": str(to.port or 3260),
        "targetIQN": target,
        "SCSIid": _detail(to, "SCSIid", "the SCSI id of the LUN, as `xe sr-probe` shows it"),
    }
    if user:
        plain["chapuser"] = user.reveal()
    return Plan("lvmoiscsi", plain, wipes=True, password=password)


def _needed(to: PrimaryDataStoreTO, name: str) -> str:
    value = getattr(to, name)
    if not value:
        raise InvalidReference(f"to make an SR of type {to.poolType}, the pool needs a {name}", sr=to.uuid)
    return str(value)


def _detail(to: PrimaryDataStoreTO, name: str, what: str) -> str:
    value = (to.details or {}).get(name)
    if not value:
        raise InvalidReference(f"to make an SR of type {to.poolType}, details need {name}: {what}", sr=to.uuid)
    return value.reveal()
