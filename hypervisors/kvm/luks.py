"""Encrypted volumes: qcow2 files whose content is encrypted with LUKS (qemu's `encrypt.format=luks`)."""

from __future__ import annotations

import os
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
from stores.tools.process import ToolRunner

_OBJECT = "luks"
"""qemu's name of the object that has it."""


class KvmLuks:
    def __init__(self, runner: ToolRunner) -> None:
        self._runner = runner

    @contextmanager
    def unlocked(self, path: Path, passphrase: Secret) -> Iterator[tuple[QemuImg, Node]]:
        """The image at `path`, of which tools read what a guest reads, and the tool that can open it."""
        with self._told(passphrase) as (qemu_img, secret):
            options = image_node(ImageFormat.QCOW2, file_node(str(path)))
            encrypt = {"format": LUKS, "key-secret": _OBJECT}
            yield qemu_img, Node({**options, "encrypt": encrypt, "backing": None}, (secret,))

    async def create(self, path: Path, size: int, provisioning: ProvisioningType, passphrase: Secret) -> None:
        """An empty image. Takes some seconds of computing: so does every guess at the passphrase."""
        with self._told(passphrase) as (qemu_img, secret):
            encryption = ("--object", secret, "-o", f"encrypt.format={LUKS},encrypt.key-secret={_OBJECT}")
            await qemu_img.create(path, ImageFormat.QCOW2, size, provisioning, *encryption)

    @contextmanager
    def _told(self, passphrase: Secret) -> Iterator[tuple[QemuImg, str]]:
        """By a file in memory that nobody but the tool inherits: the passphrase is in no argv, and on no disk."""
        descriptor = os.memfd_create(_OBJECT)
        try:
            os.write(descriptor, passphrase.reveal().encode())
            yield QemuImg(self._runner, pass_fds=(descriptor,)), f"secret,id={_OBJECT},file=/dev/fd/{descriptor}"
        finally:
            os.close(descriptor)


def require_file(image_format: ImageFormat | None, *, device: bool) -> None:
    """`OperationUnsupported` for a volume that is not encrypted that way."""
    if device or image_format is not ImageFormat.QCOW2:
        raise OperationUnsupported(
            f"encrypted volumes are QCOW2 files, not {image_format} {'devices' if device else 'files'}; use a pool that is a"
            " directory, and that format",
            format=str(image_format),
        )
