"""What answers say of backups. Sizes are bytes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackupChecked(_Model):
    """One backup of a chain. `fault`: what is wrong with it; absent if nothing is."""

    ref: str
    size: int  # bytes of its object
    fault: str | None = None


class BackupVerified(_Model):
    """`chain`: newest first; empty where not even its manifests hold together, which `fault` then tells."""

    ref: str
    sound: bool
    chain: list[BackupChecked]
    fault: str | None = None


class BackupNode(_Model):
    """One backup, and those that build on it. Sizes are bytes. `fault`: why it cannot be restored, as far as manifests show."""

    ref: str
    volume: str
    snapshot: str
    created: float  # of the snapshot, in seconds since the epoch
    virtualSize: int
    size: int
    changed: int  # bytes of the disk that it says something about
    fault: str | None = None
    children: list[BackupNode] = []


class BackupTree(_Model):
    """`roots`: full backups, and those whose parent is missing. `strays`: objects beside them that belong to none."""

    roots: list[BackupNode]
    strays: list[str]
