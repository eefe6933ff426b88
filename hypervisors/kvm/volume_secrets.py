"""Secrets of volumes, as libvirt has them: in its memory, for as long as a machine has the volume. They open an encrypted one,
or are what the storage of one on the network knows us by. Everything here blocks: it runs inside of `Libvirt.call`."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from hypervisors.contract import Source
from hypervisors.kvm.domain_xml import Image, SecretUse, secret_of
from hypervisors.kvm.libvirt_calls import library
from stores.secret import Secret

_SCHEMES = {SecretUse.VOLUME: "file", SecretUse.RBD: "rbd", SecretUse.ISCSI: "iscsi"}


@dataclass(frozen=True, slots=True)
class Needed:
    """A secret that libvirt needs for the volume at `path`. `secret` None: it has none, or none came with this command."""

    use: SecretUse
    path: str
    secret: Secret | None

    @property
    def id(self) -> str:
        """libvirt's uuid of it."""
        return str(uuid5(NAMESPACE_URL, f"{_SCHEMES[self.use]}://{self.path}"))


def needed(volume: Source, image: Image) -> Needed | None:
    """None for a volume that has none for sure."""
    if image.network is not None:
        return Needed(SecretUse.of(image.network), image.path, image.network.secret)
    if volume.spec.passphrase is None and volume.spec.encryption is None:
        return None
    return Needed(SecretUse.VOLUME, image.path, volume.spec.passphrase)


def tell(what: Needed, secret: Secret) -> Callable[[Any], None]:
    """libvirt knows it from then on, until it is told to forget it, or ends. Idempotent."""

    def work(connection: Any) -> None:
        defined = connection.secretDefineXML(secret_of(what.id, what.use, what.path))
        value = secret.reveal().encode()
        defined.setValue(b64decode(value) if what.use is SecretUse.RBD else value)  # Ceph's are texts of bytes

    return work


def forget(what: Needed) -> Callable[[Any], None]:
    """Idempotent."""

    def work(connection: Any) -> None:
        libvirt = library()
        try:
            connection.secretLookupByUUIDString(what.id).undefine()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SECRET:
                raise

    return work
