"""A store that is one directory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from stores.contract import DataStore, Kind, ObjectInfo, Presentation
from stores.transfer.engine import TransferEngine


class FilesystemStore(DataStore):
    """Files below `root`, which itself must lie below one of `allowed` after every symbolic link is resolved."""

    def __init__(
        self,
        root: Path,
        engine: TransferEngine,
        *,
        id: str,  # noqa: A002 - the contract's word
        allowed: Sequence[Path],
        writable: bool = True,
        mounted: bool = False,
        file_mode: int = 0o600,
    ) -> None:
        self.id = id

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return frozenset({Kind.LOCAL_PATH, Kind.RANGE_READER, Kind.BYTE_STREAM})

    async def stat(self, ref: str) -> ObjectInfo:
        raise AssertionError

    def present(self, info: ObjectInfo, kind: Kind) -> AbstractAsyncContextManager[Presentation]:
        raise AssertionError
