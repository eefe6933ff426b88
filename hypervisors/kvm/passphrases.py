"""Passphrases of encrypted volumes, as libvirt has them: in its memory, for as long as a machine has the volume. Everything
here blocks: it runs inside of `Libvirt.call`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from hypervisors.kvm.domain_xml import secret_of
from hypervisors.kvm.libvirt_calls import library
from stores.secret import Secret


def secret_id(path: str) -> str:
    """libvirt's uuid of the passphrase of the volume at `path`."""
    return str(uuid5(NAMESPACE_URL, f"file://{path}"))


def tell(path: str, passphrase: Secret) -> Callable[[Any], None]:
    """libvirt knows it from then on, until it is told to forget it, or ends. Idempotent."""

    def work(connection: Any) -> None:
        defined = connection.secretDefineXML(secret_of(secret_id(path), path))
        defined.setValue(passphrase.reveal().encode())

    return work


def forget(path: str) -> Callable[[Any], None]:
    """Idempotent."""

    def work(connection: Any) -> None:
        libvirt = library()
        try:
            connection.secretLookupByUUIDString(secret_id(path)).undefine()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SECRET:
                raise

    return work
