"""What libvirt is told of backups, read back as XML; and what is read of what it says."""

from __future__ import annotations

from pathlib import Path

from defusedxml.ElementTree import fromstring
from hypothesis import given
from hypothesis import strategies as st

from hypervisors.kvm import backup_xml
from hypervisors.kvm.domain_xml import Image, copy_target, is_whole, mirror_of, mirrors_of

names = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x2FFF), min_size=1).filter(str.isprintable)


@given(names, names, st.none() | names)
def test_names_are_taken_literally(folder: str, tag: str, since: str | None) -> None:
    socket, scratch = Path("/", folder, "s"), Path("/", folder, "t")
    text = backup_xml.backup("vdb", tag, socket, scratch, since)
    root = fromstring(text)
    (disk,) = root.iterfind("./disks/disk")
    assert (root.get("mode"), root.findtext("incremental")) == ("pull", since)
    assert root.find("server").attrib == {"transport": "unix", "socket": str(socket)}
    assert (disk.get("exportname"), disk.get("exportbitmap")) == (tag, since)
    assert disk.find("scratch").get("file") == str(scratch)
    assert backup_xml.job_of(text).exports == {tag: "vdb"}


def test_a_checkpoint_is_of_one_disk() -> None:
    new, known = (fromstring(backup_xml.checkpoint("vdb", "sa-1", created=each)) for each in (None, 7))
    for root in (new, known):
        (disk,) = root.iterfind("./disks/disk")
        assert disk.attrib == {"name": "vdb", "checkpoint": "bitmap", "bitmap": "sa-1"}
    assert (new.findtext("creationTime"), known.findtext("creationTime")) == (None, "7")


def test_only_an_agent_that_is_there_answers() -> None:
    machine = "<domain><devices><channel type='unix'><target name='{}' state='{}'/></channel></devices></domain>"
    agent = backup_xml.AGENT_CHANNEL
    assert backup_xml.agent_answers(machine.format(agent, "connected"))
    assert not backup_xml.agent_answers(machine.format(agent, "disconnected"))
    assert not backup_xml.agent_answers(machine.format("com.redhat.spice.0", "connected"))
    assert not backup_xml.agent_answers("<domain><devices/></domain>")


def test_a_disk_that_is_being_copied() -> None:
    machine = (
        "<domain><devices><disk device='disk'><target dev='vda'/>{}</disk><disk device='disk'><target dev='vdb'/>"
        "</disk></devices></domain>"
    )
    mirror = "<mirror ready='{}'><source file='/pool/w'/></mirror>"
    going, whole = machine.format(mirror.format("no")), machine.format(mirror.format("yes"))
    assert (mirror_of(going, "vda"), is_whole(going, "vda")) == ("/pool/w", False)
    assert (mirror_of(whole, "vda"), is_whole(whole, "vda")) == ("/pool/w", True)
    assert (mirror_of(whole, "vdb"), is_whole(whole, "vdb")) == (None, False)
    assert mirrors_of(going) == {"vda": "/pool/w"}
    target = fromstring(copy_target(Image("/a<b>&'c'", "qcow2")))
    assert target.find("source").get("file") == "/a<b>&'c'"
    assert target.find("driver").get("type") == "qcow2"
