"""From "some presentation" to the one that was asked for, so that the type checker knows it too.

A store that hands out another kind than it was asked for breaks the contract; that is a `TypeError`, not a storage error.
"""

from __future__ import annotations

from typing import cast

from stores.contract import (
    DEVICES,
    ByteStream,
    Kind,
    LocalPath,
    ManagedDisk,
    NetworkImage,
    PendingDisk,
    PendingFile,
    PendingImage,
    PendingStream,
    PendingWrite,
    Presentation,
    RangeReader,
)


def as_reader(presentation: Presentation) -> RangeReader:
    if isinstance(presentation, RangeReader):
        return presentation
    raise TypeError(f"asked for a RangeReader, got {presentation.kind}")


def as_stream(presentation: Presentation) -> ByteStream:
    if isinstance(presentation, ByteStream):
        return presentation
    raise TypeError(f"asked for a ByteStream, got {presentation.kind}")


def as_local(presentation: Presentation) -> LocalPath:
    if isinstance(presentation, LocalPath):
        return presentation
    raise TypeError(f"asked for a LocalPath, got {presentation.kind}")


def as_managed(presentation: Presentation) -> ManagedDisk:
    if isinstance(presentation, ManagedDisk):
        return presentation
    raise TypeError(f"asked for a ManagedDisk, got {presentation.kind}")


def as_device(presentation: Presentation) -> NetworkImage:
    if isinstance(presentation, NetworkImage):
        return presentation
    raise TypeError(f"asked for one of {', '.join(DEVICES)}, got {presentation.kind}")


def as_pending_device(pending: PendingWrite) -> PendingImage:
    if pending.kind in DEVICES:
        return cast(PendingImage, pending)
    raise TypeError(f"asked for one of {', '.join(DEVICES)} to make, got {pending.kind}")


def as_pending_disk(pending: PendingWrite) -> PendingDisk:
    if pending.kind is Kind.MANAGED_DISK:
        return cast(PendingDisk, pending)
    raise TypeError(f"asked for a disk to make, got {pending.kind}")


def as_pending_file(pending: PendingWrite) -> PendingFile:
    if pending.kind is Kind.LOCAL_PATH:
        return cast(PendingFile, pending)
    raise TypeError(f"asked for a file to fill, got {pending.kind}")


def as_pending_stream(pending: PendingWrite) -> PendingStream:
    if pending.kind is Kind.BYTE_STREAM:
        return cast(PendingStream, pending)
    raise TypeError(f"asked for an object to send in order, got {pending.kind}")
