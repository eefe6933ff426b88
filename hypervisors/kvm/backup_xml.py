"""What libvirt is told of backups and checkpoints, and what it says of them.

The formats are libvirt's (https://libvirt.org/formatbackup.html, https://libvirt.org/formatcheckpoint.html). Everything is
built as a tree, so that no name can be taken for markup.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

from defusedxml.ElementTree import fromstring

AGENT_CHANNEL = "org.qemu.guest_agent.0"


@dataclass(frozen=True)
class Job:
    """A pull-mode backup that a machine has. `exports`: by the names under which disks are served, `vda` and the like."""

    exports: dict[str, str]


def backup(target: str, tag: str, socket: Path, scratch: Path, since: str | None) -> str:
    """The disk `target` as it is now, served as the export `tag` on `socket`; what the machine overwrites meanwhile is kept in
    `scratch`. `since`: the checkpoint from which on changes are told, as the bitmap of that name."""
    root = Element("domainbackup", mode="pull")
    if since is not None:
        SubElement(root, "incremental").text = since
    SubElement(root, "server", transport="unix", socket=str(socket))
    disk = SubElement(
        SubElement(root, "disks"),
        "disk",
        {"name": target, "backup": "yes", "type": "file", "exportname": tag}
        | ({"exportbitmap": since} if since is not None else {}),
    )
    SubElement(disk, "driver", type="qcow2")
    SubElement(disk, "scratch", file=str(scratch))
    return tostring(root, encoding="unicode")


def checkpoint(target: str, tag: str, *, created: int | None = None) -> str:
    """A bitmap `tag` of that disk, and no other. `created`, seconds since the epoch: it is there already."""
    root = Element("domaincheckpoint")
    SubElement(root, "name").text = tag
    if created is not None:
        SubElement(root, "creationTime").text = str(created)
    SubElement(SubElement(root, "disks"), "disk", name=target, checkpoint="bitmap", bitmap=tag)
    return tostring(root, encoding="unicode")


def job_of(text: str) -> Job:
    """Of the XML of a machine's backup."""
    disks = fromstring(text, forbid_dtd=True).iterfind("./disks/disk[@backup='yes']")
    return Job({str(disk.get("exportname")): str(disk.get("name")) for disk in disks})


def agent_answers(domain: str) -> bool:
    """Whether the agent inside the machine has its channel open."""
    targets = fromstring(domain, forbid_dtd=True).iterfind("./devices/channel/target")
    return any(each.get("name") == AGENT_CHANNEL and each.get("state") == "connected" for each in targets)
