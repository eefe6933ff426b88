"""What libvirt is told of disks on the network, and of their secrets; read back as libvirt reads it."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from hypervisors.contract import ImageSpec, Source
from hypervisors.guests import UNTUNED
from hypervisors.kvm.domain_xml import Image, SecretUse, disks_of, new_disk, secret_of
from hypervisors.kvm.volume_secrets import needed
from stores.contract import Kind, NetworkDisk, NetworkImage, ObjectInfo
from stores.secret import Secret
from stores.to import ImageFormat

HOSTS = (("mon1", 6789), ("2001:db8::1", 3300))
NAME = "pool/'<&>\""


def disk(network: NetworkDisk, secret: str | None) -> str:
    image = Image(network.name, "raw", network=network)
    return new_disk([image], "vdb", "virtio", UNTUNED, cache="none", read_only=False, secret=secret)


@pytest.mark.parametrize(("protocol", "secret_type"), [("rbd", "ceph"), ("iscsi", "iscsi")])
def test_a_disk_on_the_network(protocol: str, secret_type: str) -> None:
    xml = disk(NetworkDisk(protocol, NAME, HOSTS, "vm", Secret("key")), "some-uuid")
    assert "key" not in xml.replace("some-uuid", "")
    found = ElementTree.fromstring(xml)
    source = found.find("source")
    assert source is not None
    assert (found.get("type"), source.attrib) == ("network", {"protocol": protocol, "name": NAME})
    assert [each.attrib for each in source.findall("host")] == [
        {"name": "mon1", "port": "6789"},
        {"name": "2001:db8::1", "port": "3300"},
    ]
    auth = source.find("auth")
    assert auth is not None
    assert auth.get("username") == "vm"
    assert [each.attrib for each in auth] == [{"type": secret_type, "uuid": "some-uuid"}]
    [read] = disks_of(f"<domain><devices>{xml}</devices></domain>")
    assert (read.source, read.device) == (NAME, 1)


def test_a_storage_that_asks_for_nothing() -> None:
    found = ElementTree.fromstring(disk(NetworkDisk("iscsi", NAME, HOSTS), None))
    assert found.find("source/auth") is None


@pytest.mark.parametrize(
    ("use", "path"), [(SecretUse.VOLUME, "volume"), (SecretUse.RBD, "name"), (SecretUse.ISCSI, "target")]
)
def test_secrets_are_kept_in_memory_and_told_nobody(use: SecretUse, path: str) -> None:
    found = ElementTree.fromstring(secret_of("some-uuid", use, NAME))
    assert found.attrib == {"ephemeral": "yes", "private": "yes"}
    assert found.findtext("uuid") == "some-uuid"
    assert found.findtext(f"usage[@type='{use.value}']/{path}") == NAME


def test_one_secret_for_each_disk() -> None:
    """Found again without it, by the disk's name alone."""

    def of(protocol: str, name: str, secret: Secret | None) -> str:
        network = NetworkDisk(protocol, name, HOSTS, "vm", secret)
        image = NetworkImage({}, ObjectInfo("v", None), Kind.RBD_IMAGE, network=network)
        what = needed(Source(image, ImageSpec(ImageFormat.RAW)), Image(name, "raw", network=network))
        assert what is not None
        assert what.secret == secret
        return what.id

    assert of("rbd", "a", Secret("k")) == of("rbd", "a", None)
    assert len({of(protocol, name, None) for protocol in ("rbd", "iscsi") for name in ("a", "b")}) == 4
