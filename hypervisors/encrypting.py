"""Volumes whose content is encrypted: with LUKS, inside of the image, by a passphrase that comes with every command that needs
it and is kept nowhere."""

from __future__ import annotations

from dataclasses import replace

from hypervisors.contract import HypervisorHandler, OperationUnsupported, Source
from hypervisors.records import Record
from stores.errors import InvalidReference
from stores.secret import Secret
from stores.to import DataTO

LUKS = "luks"


def passphrase_of(data: DataTO, handler: HypervisorHandler) -> Secret | None:
    """With what a volume is encrypted, or shall be; None if it is not. `InvalidReference` for a command that says half of it,
    `OperationUnsupported` for another encryption than LUKS, and where the hypervisor has none."""
    if data.type != "volume" or not (data.passphrase or data.encryptFormat):
        return None
    if data.encryptFormat and data.encryptFormat.lower() != LUKS:
        raise OperationUnsupported(
            f"volumes are encrypted with LUKS here, not with {data.encryptFormat}; nothing was done", ref=data.path
        )
    if not handler.encrypts:
        raise OperationUnsupported(
            f"encrypted volumes are not supported with {handler.type}; nothing was done", ref=data.path
        )
    if not data.passphrase:
        raise InvalidReference(
            "the command says that the volume is encrypted, and has no passphrase; nothing was done", ref=data.path
        )
    return data.passphrase


def require_plain(record: Record | None, ref: str) -> None:
    """`OperationUnsupported` for what is done with the volume's bytes in the clear."""
    if record is not None and record.encryption is not None:
        raise OperationUnsupported(
            f"{ref} is encrypted: it is made, attached, detached, resized and deleted here, and nothing else is done with it;"
            " copy it inside a guest",
            ref=ref,
            encryption=record.encryption,
        )


def unlocked(source: Source, record: Record, passphrase: Secret | None) -> Source:
    """`source`, with its passphrase. `InvalidReference` where command and record do not agree on whether there is one."""
    ref = source.presentation.info.ref
    if record.encryption is not None and passphrase is None:
        raise InvalidReference(f"{ref} is encrypted, and the command has no passphrase; nothing was done", ref=ref)
    if record.encryption is None and passphrase is not None:
        raise InvalidReference(
            f"the command has a passphrase for {ref}, which is not encrypted by our record of it; nothing was done",
            ref=ref,
        )
    return replace(source, spec=replace(source.spec, passphrase=passphrase))
