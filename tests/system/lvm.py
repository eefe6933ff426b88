"""Volume groups with device-mapper: thick volumes, wiped when they go, and thin ones, which share blocks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stores.contract import MiB
from tests.demo.stage import expect, say
from tests.servers import S3Server
from tests.system.agent import UNIT, Agent
from tests.system.machine import Machine
from tests.system.unit import SIZE, template, volume

GROUPS = """
modprobe -a loop dm_mod dm_thin_pool dm_snapshot
for name in thick thin; do
  truncate -s 256M /srv/$name.img
  device=$(losetup --find --show /srv/$name.img)
  pvcreate -q $device; vgcreate -q --physicalextentsize 1m $name $device
done
lvcreate -q --yes --type thin-pool --size 192m --name pool0 thin
"""

CONFIG = """
[lvm]
groups = ["thick", "thin"]
thin_pools = { thin = "pool0" }
wipe = "zero"
"""

README = Path(__file__).parents[2] / "systemd" / "README.md"


def works(agent: Agent, server: S3Server) -> None:
    machine = agent.machine
    source, digest = template(server)
    say("volume groups; the unit is opened for them as its README says")
    machine.run(GROUPS)
    (drop_in,) = re.findall(r"```ini\n# (\S+/lvm\.conf)\n(.*?)```", README.read_text(), re.DOTALL)
    machine.run(f"mkdir -p {Path(drop_in[0]).parent}")
    machine.put(*drop_in)
    agent.configure(CONFIG, "storage-agent.d/lvm.toml")
    machine.run(f"systemctl daemon-reload; systemctl restart {UNIT}")
    for name in ("thick", "thin"):
        created = agent.submit({"command": "CreateStoragePool", "pool": _pool(name)})
        expect(created.answer["result"] is True, f"no pool: {created.answer}")

    say("a template from S3 into a thick and a thin volume")
    for name in ("thick", "thin"):
        agent.submit({"command": "Copy", "source": source, "destination": volume("v1", _pool(name))})
        expect(_digest(machine, f"/dev/{name}/v1") == digest, f"the {name} volume is not the template")

    _is_wiped(agent)
    _is_shared(agent, digest)
    _is_busy(agent)
    for name in ("thick", "thin"):
        agent.submit({"command": "DeleteStoragePool", "pool": _pool(name)})
    expect(machine.run("vgs --noheadings -o vg_tags").split() == [], "something is noted of images that are gone")


def _is_wiped(agent: Agent) -> None:
    machine = agent.machine
    say("a thick volume that is deleted leaves nothing for the next one to read")
    agent.submit({"command": "Delete", "data": volume("v1", _pool("thick"))})
    machine.run(f"lvcreate -q --yes --zero n --wipesignatures n --size {SIZE}b --name next thick")
    expect(machine.tried(f"cmp -n {SIZE} /dev/thick/next /dev/zero")[0] == 0, "the next volume shows the old content")
    machine.run("lvremove -q --yes thick/next")


def _is_shared(agent: Agent, digest: str) -> None:
    machine = agent.machine
    say("a linked clone and a snapshot share the thin volume's blocks; the snapshot is gone back to")
    clone = {"command": "Copy", "source": _template("v1"), "destination": volume("v2", _pool("thin"))}
    agent.submit(clone)
    expect(machine.run("lvs --noheadings -o origin thin/v2") == "v1", "the clone shares nothing")
    expect(_digest(machine, "/dev/thin/v2") == digest, "the clone is not its origin")
    snapshot = {"type": "snapshot", "name": "s1", "volume": volume("v2", _pool("thin")), "dataStore": _pool("thin")}
    agent.submit({"command": "CreateObject", "data": snapshot})
    machine.run("dd if=/dev/urandom of=/dev/thin/v2 bs=1M count=4 conv=notrunc,fsync status=none")
    agent.submit({"command": "RevertSnapshot", "data": {**snapshot, "path": "v2/s1"}})
    expect(_digest(machine, "/dev/thin/v2") == digest, "the volume was not gone back to")
    used = float(machine.run("lvs --noheadings --nosuffix --units m -o lv_size,data_percent thin/pool0").split()[1])
    expect(used * 192 / 100 < 2 * SIZE / MiB, f"nothing is shared: {used} % are used")
    agent.submit({"command": "Delete", "data": {**snapshot, "path": "v2/s1"}})


def _is_busy(agent: Agent) -> None:
    machine = agent.machine
    say("a volume grows; what somebody has open is not deleted, and goes after that")
    grown = agent.submit({"command": "ResizeVolume", "data": volume("v2", _pool("thin")), "newSize": SIZE + 16 * MiB})
    expect(grown.answer["result"] is True, f"it did not grow: {grown.answer}")
    expect(machine.run("blockdev --getsize64 /dev/thin/v2") == str(SIZE + 16 * MiB), "it has another size")
    delete = {"command": "Delete", "data": volume("v2", _pool("thin"))}
    machine.run("sleep 600 < /dev/thin/v2 & echo $! > /run/guest")
    expect(agent.submit(delete, fails=True).kind == "Unavailable", "an open volume was deleted")
    machine.run("kill $(cat /run/guest); rm /run/guest")
    agent.submit(delete)
    agent.submit({"command": "Delete", "data": volume("v1", _pool("thin"))})
    expect(machine.run("lvs --noheadings -o lv_name thin thick").split() == ["pool0"], "volumes are left")


def _pool(group: str) -> dict[str, Any]:
    return {"storeType": "primary", "uuid": f"pool-{group}", "poolType": "LVM", "path": f"/{group}"}


def _template(path: str) -> dict[str, Any]:
    return {"type": "template", "path": path, "format": "RAW", "imageDataStore": _pool("thin")}


def _digest(machine: Machine, device: str) -> str:
    """Of as much as the template has."""
    return machine.run(f"head -c {SIZE} {device} | sha256sum").split()[0]
