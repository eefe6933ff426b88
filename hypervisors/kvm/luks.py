"""Encrypted volumes: qcow2 files whose content is encrypted with LUKS (qemu's `encrypt.format=luks`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypervisors.contract import OperationUnsupported
from hypervisors.encrypting import LUKS
from hypervisors.images.formats import file_node, image_node
from hypervisors.qemu.nodes import Node
from hypervisors.qemu.qemu_img import QemuImg
from stores.secret import Secret
from stores.to import ImageFormat, ProvisioningType
from stores.tools.in_memory import in_memory

_OBJECT = "luks"
"""qemu's name of the object that has it."""


class KvmLuks:
    def __init__(self, qemu_img: QemuImg) -> None:
        self._qemu_img = qemu_img

    @contextmanager
    def unlocked(self, path: Path, passphrase: Secret) -> Iterator[Node]:
        """The image at `path`, of which tools read what a guest reads."""
        with in_memory(passphrase) as file:
            options = image_node(ImageFormat.QCOW2, file_node(str(path)))
            encrypt = {"format": LUKS, "key-secret": _OBJECT}
            yield Node({**options, "encrypt": encrypt, "backing": None}, (_secret(file),))

    async def create(self, path: Path, size: int, provisioning: ProvisioningType, passphrase: Secret) -> None:
        """An empty image. Takes some seconds of computing: so does every guess at the passphrase."""
        with in_memory(passphrase) as file:
            encryption = ("--object", _secret(file), "-o", f"encrypt.format={LUKS},encrypt.key-secret={_OBJECT}")
            await self._qemu_img.create(path, ImageFormat.QCOW2, size, provisioning, *encryption)


def _secret(file: str) -> str:
    return f"secret,id={_OBJECT},file={file}"


def require_file(image_format: ImageFormat | None, *, device: bool) -> None:
    """`OperationUnsupported` for a volume that is not encrypted that way."""
    if device or image_format is not ImageFormat.QCOW2:
        raise OperationUnsupported(
            f"encrypted volumes are QCOW2 files, not {image_format} {'devices' if device else 'files'}; use a pool that is a"
            " directory, and that format",
            format=str(image_format),
        )
