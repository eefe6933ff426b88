"""The unit under systemd itself: it starts, works in its sandbox, is killed, recovers, and stops."""

from __future__ import annotations

import hashlib
import random
import re
from typing import Any

from stores.contract import MiB
from tests.demo.stage import expect, say
from tests.servers import S3Server
from tests.system.agent import UNIT, Agent
from tests.system.machine import HOST

BUCKET = "templates"
POOL = "/var/lib/storage-agent/pools/p1"
SIZE = 48 * MiB
START_S, STOP_S = 120.0, 60.0


def template(server: S3Server) -> tuple[dict[str, Any], str]:
    """A raw image in S3, and its digest."""
    content = random.Random(7).randbytes(SIZE)
    client = server.client()
    if BUCKET not in [found["Name"] for found in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="t.raw", Body=content)
    client.close()
    store = {
        "storeType": "s3",
        "endPoint": f"http://{HOST}:{server.port}",
        "bucketName": BUCKET,
        "accessKey": server.access_key,
        "secretKey": server.secret_key,
    }
    datum = {"type": "template", "path": "t.raw", "format": "RAW", "imageDataStore": store}
    return datum, hashlib.sha256(content).hexdigest()


def volume(path: str, pool: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "volume", "path": path, "format": "RAW", "dataStore": pool, **more}


DIRECTORY = {"storeType": "primary", "uuid": "p1", "poolType": "Filesystem", "path": POOL}


def starts(agent: Agent) -> None:
    machine = agent.machine
    say("systemd starts the unit; READY=1 ends the start")
    machine.run(f"install -d -o storage-agent -g storage-agent -m 2770 {POOL}")
    machine.run(f"systemctl enable --now {UNIT}", within_s=START_S)
    expect(agent.property("StatusText").startswith("ready"), f"not ready: {agent.property('StatusText')}")
    expect(agent.status()["ready"] is True, "the agent does not say that it is ready")
    _is_nobody(agent)
    _is_tight(agent)


def works(agent: Agent, server: S3Server) -> None:
    machine = agent.machine
    say("a template from S3 into a volume, within the sandbox")
    source, digest = template(server)
    copy = {"command": "Copy", "source": source, "destination": volume("v1", DIRECTORY)}
    agent.submit(copy)
    expect(machine.run(f"sha256sum < {POOL}/v1").startswith(digest), "the volume is not the template")
    machine.run(f"test $(stat -c %U:%G:%a {POOL}/v1) = storage-agent:storage-agent:660")

    say("kill -9 in the middle of a copy: systemd starts the agent again, and it accounts for the command")
    agent.killed({**copy, "destination": volume("v2", DIRECTORY)}, "killed", when=f"ls -A {POOL} | grep -q partial")
    answer = agent.answer("killed")
    expect((answer.get("error") or {}).get("kind") == "Interrupted", f"not as interrupted: {answer}")
    expect(machine.run(f"ls -A {POOL}").split() == [".storage-agent", "v1"], "something of the copy is left")
    expect(agent.property("NRestarts") == "1", "systemd does not know of the restart")
    agent.submit({**copy, "destination": volume("v2", DIRECTORY)})
    expect(machine.run(f"sha256sum < {POOL}/v2").startswith(digest), "the second volume is not the template")


def stops(agent: Agent) -> None:
    machine = agent.machine
    say("stopped by systemd, in time and by itself; the socket starts it again")
    machine.run(f"systemctl stop {UNIT}", within_s=STOP_S)
    expect(agent.property("Result") == "success", f"it ended as {agent.property('Result')}")
    left = machine.run("find /proc -maxdepth 1 -name '[0-9]*' -user storage-agent")
    expect(left == "", f"processes of the agent are left: {left}")
    agent.status()
    machine.run(f"systemctl is-active {UNIT}")
    machine.run(f"systemctl stop {UNIT} storage-agent.socket; test ! -e /run/storage-agent/api.sock", within_s=STOP_S)
    failed = machine.run("systemctl list-units --failed --no-legend 'storage-agent*'")
    expect(failed == "", f"failed units are left: {failed}")


def _is_nobody(agent: Agent) -> None:
    status = agent.machine.run(f"cat /proc/{agent.property('MainPID')}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    user = agent.machine.run("id -u storage-agent")
    expect(set(fields["Uid"].split()) == {user}, f"it runs as {fields['Uid']}")
    expect({int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}, "it has capabilities")
    expect((fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2"), "it may gain privileges, or call what it likes")


def _is_tight(agent: Agent) -> None:
    report = agent.machine.run(f"systemd-analyze security --no-pager {UNIT}")
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", report)
    expect(found is not None and float(found[1]) < 2, f"the sandbox of the running unit is not tight:\n{report[-500:]}")
