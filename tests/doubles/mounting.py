"""A mounter that mounts nothing, and the table of mounts that it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stores.errors import StoreError
from stores.mounts.export import Export
from stores.mounts.mount import MountInUse
from stores.mounts.table import Mounted


class NotingMounter:
    def __init__(self) -> None:
        self.mounted: dict[Path, Mounted] = {}
        self.calls: list[str] = []
        self.exports: list[Export] = []
        self.failure: StoreError | None = None
        self.busy = False

    def table(self) -> Mapping[Path, Mounted]:
        return dict(self.mounted)

    async def mount(self, export: Export, at: Path) -> None:
        self.calls.append(f"mount {export.source} {at.name}")
        if self.failure is not None:
            raise self.failure
        self.exports.append(export)
        self.mounted[at] = Mounted(at, export.source, "nfs4")

    async def unmount(self, at: Path) -> None:
        self.calls.append(f"unmount {at.name}")
        if self.busy:
            raise MountInUse("busy")
        del self.mounted[at]
