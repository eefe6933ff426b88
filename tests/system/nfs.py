"""NFS by the kernel's own server and client: the agent has exports mounted, and lives with servers that do not answer."""

from __future__ import annotations

import json
from typing import Any

from tests.demo.stage import expect, say
from tests.servers import S3Server
from tests.system.agent import UNIT, Agent
from tests.system.machine import Machine
from tests.system.unit import DIRECTORY, STOP_S, template, volume

SERVER = """
printf '[nfsd]\\nthreads=2\\nvers3=n\\ngrace-time=10\\nlease-time=10\\n' > /etc/nfs.conf
for name in pool images; do install -d -o storage-agent -g storage-agent -m 2770 /srv/$name; done
printf '/srv/%s 127.0.0.0/8(rw,no_root_squash,no_subtree_check,fsid=%s)\\n' pool 11 images 12 > /etc/exports
systemctl start nfs-server
"""

CONFIG = """
[nfs]
mounting = "mounter"
options = ["vers=4.2"]
exports = ["127.0.0.1:/srv"]
"""

POOL = {
    "storeType": "primary",
    "uuid": "pool-of-nfs",
    "poolType": "NetworkFilesystem",
    "host": "127.0.0.1",
    "path": "/srv/pool",
}
AT = "/mnt/pool-of-nfs"
IMAGES = {"storeType": "nfs", "_url": "nfs://127.0.0.1/srv/images"}
STATS = {"command": "GetStorageStats", "store": POOL}
CONTRACT_S = 600.0
TRUST_S = 3  # an answer of a server counts for less


def works(agent: Agent, server: S3Server) -> None:
    machine = agent.machine
    source, digest = template(server)
    say("an NFS server; the daemon, which may mount nothing, has the mounter do it")
    machine.run(SERVER)
    agent.configure(CONFIG, "storage-agent.d/nfs.toml")
    machine.run(f"systemctl enable --now storage-agent-mounter.socket; systemctl restart {UNIT}")
    created = agent.submit({"command": "CreateStoragePool", "pool": POOL})
    expect(created.answer["result"] is True, f"no pool: {created.answer}")
    options = machine.run(f"findmnt -no FSTYPE,SOURCE,OPTIONS {AT}")
    expect(
        all(word in options for word in ("nfs4", "127.0.0.1:/srv/pool", "nosuid", "nodev", "noexec")),
        f"not mounted as it should be: {options}",
    )

    say("a template from S3 into a volume on NFS, and from an image store on NFS into a directory")
    agent.submit({"command": "Copy", "source": source, "destination": volume("v1", POOL)})
    for place in (f"{AT}/v1", "/srv/pool/v1"):
        expect(machine.run(f"sha256sum < {place}").startswith(digest), f"{place} is not the template")
    machine.run("install -o storage-agent -m 640 /srv/pool/v1 /srv/images/t.raw")
    in_store = {"type": "template", "path": "t.raw", "format": "RAW", "imageDataStore": IMAGES}
    agent.submit({"command": "Copy", "source": in_store, "destination": volume("v3", DIRECTORY)})
    expect(machine.run(f"sha256sum < {DIRECTORY['path']}/v3").startswith(digest), "the volume is not the template")
    expect(len(_mounts(machine)) == 2, f"mounted: {_mounts(machine)}")

    say("the store contract, tried on the exports themselves")
    for number, store in enumerate((IMAGES, POOL)):
        name = f"/run/store-{number}.json"
        machine.put(name, json.dumps(store), mode="0600")
        checked = f"chown storage-agent {name}; setpriv --reuid=storage-agent --regid=storage-agent --clear-groups"
        report = machine.run(f"{checked} storage-agent check-store {name}; rm {name}", within_s=CONTRACT_S)
        expect(report.endswith("every promise on offer is kept"), report)

    _is_refused(agent)
    _silence(agent)
    _stale(agent)
    _goes(agent)


def _is_refused(agent: Agent) -> None:
    say("what the configuration does not allow is not mounted, and leaves nothing")
    refused: list[tuple[dict[str, Any], str]] = [
        ({**POOL, "uuid": "p2", "path": "/etc"}, "PolicyRefused"),
        ({**POOL, "uuid": "p2", "details": {"nfsmountopts": "suid"}}, "PolicyRefused"),
        ({**POOL, "uuid": "p2", "path": "/srv/none"}, "NotFound"),
    ]
    for pool, kind in refused:
        outcome = agent.submit({"command": "CreateStoragePool", "pool": pool}, fails=True)
        expect(outcome.kind == kind, f"{pool} was refused with {outcome.answer}")
    expect(agent.machine.tried("test -e /mnt/p2")[0] == 1, "a directory is left")
    unprivileged = "setpriv --reuid=nobody --clear-groups python3 -c 'import socket; "
    unprivileged += 'socket.socket(socket.AF_UNIX).connect("/run/storage-agent-mounter.sock")' + "'"
    expect("PermissionError" in agent.machine.tried(unprivileged)[1], "anybody may ask the mounter")


def _silence(agent: Agent) -> None:
    machine = agent.machine
    say("the server is silent: who needs it is refused, everybody else goes on, and the agent stops and starts")
    machine.run(f"systemctl stop nfs-server; sleep {TRUST_S}")
    outcome = agent.submit(STATS, fails=True)
    expect((outcome.kind, outcome.code) == ("MountHangs", 3), f"not as silent: {outcome.answer}")
    agent.submit({"command": "CreateObject", "data": volume("v4", DIRECTORY, size=1 << 20)})
    machine.run(f"systemctl stop {UNIT}", within_s=STOP_S)
    expect(agent.property("Result") == "success", f"it ended as {agent.property('Result')}")
    machine.run(f"systemctl start {UNIT}")
    expect(agent.submit(STATS, fails=True).kind == "MountHangs", "the restarted agent finds the server well")
    machine.run("systemctl start nfs-server")
    machine.until("timeout 5 stat -f /mnt/pool-of-nfs >/dev/null")
    machine.run(f"sleep {TRUST_S}")
    agent.submit(STATS)
    expect(len([at for at in _mounts(machine) if at == AT]) == 1, "mounted twice: the mount was not taken over")


def _stale(agent: Agent) -> None:
    machine = agent.machine
    say("the server forgets the export: it is mounted anew when it is back")
    machine.run(f"exportfs -u 127.0.0.0/8:/srv/pool; sleep {TRUST_S}")
    agent.submit(STATS, fails=True)
    machine.run(f"exportfs -ra; sleep {TRUST_S}")
    agent.submit(STATS)


def _goes(agent: Agent) -> None:
    machine = agent.machine
    say("the pool goes when nobody has it open")
    delete = {"command": "DeleteStoragePool", "pool": POOL}
    machine.run(f"sleep 600 < {AT}/v1 & echo $! > /run/guest")
    expect(agent.submit(delete, fails=True).kind == "MountInUse", "a pool with open volumes was unmounted")
    machine.run("kill $(cat /run/guest); rm /run/guest")
    agent.submit(delete)
    expect(AT not in _mounts(machine), "the pool is still mounted")
    machine.run(f"test ! -e {AT}; test -e /srv/pool/v1")


def _mounts(machine: Machine) -> list[str]:
    return machine.tried("findmnt -rnt nfs4 -o TARGET")[1].split()
