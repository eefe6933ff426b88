"""What libvirt writes of a machine's disks, read; and what it is told of them, written.

The format is libvirt's (https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms). Everything is built as a tree,
so that no name of a file can be taken for markup, and read without document types and entities.
"""

from __future__ import annotations

import copy
import string
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from xml.etree.ElementTree import Element, SubElement, tostring

from defusedxml.ElementTree import fromstring

from hypervisors.guests import Attachment, Tuning
from stores.contract import NetworkDisk

_DEVICES = ("disk", "lun", "cdrom")

DEVICES = 64
"""Device numbers that a machine has at most."""

_RATES = {
    "read_bytes_sec": "bytes_read",
    "write_bytes_sec": "bytes_written",
    "read_iops_sec": "reads",
    "write_iops_sec": "writes",
}


@dataclass(frozen=True)
class Disk:
    """A disk or CD drive of a machine. `target`: libvirt's name of it, `vdb`. `source`: the file, None of an empty drive.
    `alias`: qemu's name of the device; only a running machine has them."""

    target: str
    bus: str
    source: str | None
    read_only: bool
    drive: bool
    alias: str | None
    element: Element

    @property
    def device(self) -> int:
        return number_of(self.target)

    def attachment(self) -> Attachment:
        name = self.target if self.alias is not None else None
        return Attachment(self.device, self.source, name, read_only=self.read_only, drive=self.drive)


@dataclass(frozen=True)
class Image:
    """An image file, a block device of this host, or a disk on the network, and what qemu calls its format. `path` of the last
    is its name there."""

    path: str
    driver: str
    device: bool = False
    network: NetworkDisk | None = None


def disks_of(domain: str) -> list[Disk]:
    """The disks and drives in a machine's XML, by device number."""
    found = [_disk(element) for element in fromstring(domain, forbid_dtd=True).iterfind("./devices/disk")]
    return sorted((disk for disk in found if disk is not None), key=lambda disk: (disk.device, disk.target))


def _disk(element: Element) -> Disk | None:
    kind, target = element.get("device", "disk"), element.find("target")
    if kind not in _DEVICES or target is None:
        return None
    source, alias = element.find("source"), element.find("alias")
    given = None if source is None else source.get("file") or source.get("dev") or source.get("name")
    return Disk(
        target=target.get("dev", ""),
        bus=target.get("bus", ""),
        source=given,
        read_only=kind == "cdrom" or element.find("readonly") is not None,
        drive=kind == "cdrom",
        alias=None if alias is None else alias.get("name"),
        element=element,
    )


def number_of(target: str) -> int:
    """`vda` is 0, `vdz` 25, `vdaa` 26; so are they of other buses."""
    number = 0
    for letter in target[2:]:
        number = number * 26 + string.ascii_lowercase.find(letter) + 1
    return number - 1


def target_of(number: int, bus: str) -> str:
    """The other way."""
    letters = ""
    number += 1
    while number:
        number, letter = divmod(number - 1, 26)
        letters = string.ascii_lowercase[letter] + letters
    return ("sd" if bus == "scsi" else "vd") + letters


def new_disk(
    images: Sequence[Image],
    target: str,
    bus: str,
    tuning: Tuning,
    *,
    cache: str | None,
    read_only: bool,
    secret: str | None = None,
) -> str:
    """`images`: the disk's own, then what it is built on, nearest first: libvirt looks for no others. `secret`: libvirt's uuid
    of the passphrase of an encrypted one, or of what the storage knows us by."""
    disk = Element("disk", type=_type_of(images[0]), device="disk")
    driver = {"name": "qemu", "type": images[0].driver, "discard": "unmap"}
    SubElement(disk, "driver", driver if cache is None else driver | {"cache": cache})
    source = SubElement(disk, "source", _named(images[0]))
    if images[0].network is not None:
        _reach(source, images[0].network, secret)
    elif secret is not None:
        SubElement(SubElement(source, "encryption", format="luks"), "secret", type="passphrase", uuid=secret)
    layer = disk
    for image in images[1:]:
        layer = SubElement(layer, "backingStore", type="file")
        SubElement(layer, "format", type=image.driver)
        SubElement(layer, "source", file=image.path)
    SubElement(layer, "backingStore")
    SubElement(disk, "target", dev=target, bus=bus)
    rates = {name: getattr(tuning, field) for name, field in _RATES.items() if getattr(tuning, field)}
    if rates:
        iotune = SubElement(disk, "iotune")
        for name, rate in rates.items():
            SubElement(iotune, name).text = str(rate)
    if read_only:
        SubElement(disk, "readonly")
    if tuning.serial:
        SubElement(disk, "serial").text = tuning.serial
    return tostring(disk, encoding="unicode")


def _type_of(image: Image) -> str:
    if image.network is not None:
        return "network"
    return "block" if image.device else "file"


def _named(image: Image) -> dict[str, str]:
    if image.network is not None:
        return {"protocol": image.network.protocol, "name": image.network.name}
    return {"dev" if image.device else "file": image.path}


def _reach(source: Element, network: NetworkDisk, secret: str | None) -> None:
    for name, port in network.hosts:
        SubElement(source, "host", name=name, port=str(port))
    if network.user is not None and secret is not None:
        auth = SubElement(source, "auth", username=network.user)
        SubElement(auth, "secret", type=SecretUse.of(network).value, uuid=secret)


class SecretUse(StrEnum):
    """What libvirt is told a secret for."""

    VOLUME = "volume"
    RBD = "ceph"
    ISCSI = "iscsi"

    @classmethod
    def of(cls, network: NetworkDisk) -> SecretUse:
        return {"rbd": cls.RBD, "iscsi": cls.ISCSI}[network.protocol]


_USES = {SecretUse.VOLUME: "volume", SecretUse.RBD: "name", SecretUse.ISCSI: "target"}


def secret_of(uuid: str, use: SecretUse, path: str) -> str:
    """A secret as libvirt is told of it (https://libvirt.org/formatsecret.html): it is kept in memory, and told nobody."""
    secret = Element("secret", ephemeral="yes", private="yes")
    SubElement(secret, "uuid").text = uuid
    SubElement(SubElement(secret, "usage", type=use.value), _USES[use]).text = path
    return tostring(secret, encoding="unicode")


def with_medium(drive: Disk, path: str | None) -> str:
    """The drive as it is, with another medium or none: libvirt refuses any other change."""
    element = copy.deepcopy(drive.element)
    for name in ("source", "backingStore", "mirror"):
        for child in element.findall(name):
            element.remove(child)
    element.set("type", "file")
    if path is not None:
        driver = element.find("driver")
        (SubElement(element, "driver") if driver is None else driver).attrib.update(name="qemu", type="raw")
        SubElement(element, "source", file=path)
    return tostring(element, encoding="unicode")


def copy_target(image: Image) -> str:
    """What a disk is copied to while its machine runs: a file that is there."""
    disk = Element("disk", type="file")
    SubElement(disk, "driver", name="qemu", type=image.driver)
    SubElement(disk, "source", file=image.path)
    return tostring(disk, encoding="unicode")


def mirror_of(domain: str, target: str) -> str | None:
    """The file that the disk is being copied to."""
    mirror = _mirror(domain, target)
    source = None if mirror is None else mirror.find("source")
    return None if source is None else source.get("file")


def mirrors_of(domain: str) -> dict[str, str]:
    """The files that disks are being copied to, by the disk's target."""
    found = {disk.target: mirror_of(domain, disk.target) for disk in disks_of(domain)}
    return {target: path for target, path in found.items() if path is not None}


def is_whole(domain: str, target: str) -> bool:
    """Whether what the disk is being copied to holds all of it, and gets what is written from now on."""
    mirror = _mirror(domain, target)
    return mirror is not None and mirror.get("ready") == "yes"


def _mirror(domain: str, target: str) -> Element | None:
    disk = next((each for each in disks_of(domain) if each.target == target), None)
    return None if disk is None else disk.element.find("mirror")


def as_it_is(disk: Disk) -> str:
    """To say which one is meant."""
    return tostring(disk.element, encoding="unicode")
