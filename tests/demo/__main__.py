"""`make demo`: the main job from end to end, with a real S3 server, the real daemon and its command line.

A bootable template goes into S3, becomes a volume by one command, is compared and booted; a hostile template is refused. An
ISO is attached as a file through the cache, attached once more without a byte of it from S3, and another one is refused, with
the numbers, while the cache is full. A volume is backed up into S3, in full and then what changed, with the S3 server killed in
the middle of an upload and brought back; the restored volume is compared with the one that was backed up.
Everything lives in a temporary directory below `build/`, which is removed at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.demo.stage import say
from tests.doubles.fault_proxy import FaultProxy, fault_proxy
from tests.guest import GiB, MiB, boot, build_disk, fetch_kernel, run
from tests.servers import S3Server, run_seaweed, running, seaweed_ports, wait_for

BUILD = Path(__file__).parents[2] / "build"
AGENT = Path(sys.executable).parent / "storage-agent"
BUCKET = "templates"
BACKUPS = "backups"
SIZE = 2 * GiB
PAYLOAD = 768 * MiB
HASHED_MIB = 32

CONFIG = """
[agent]
state_dir = "{work}/state"
runtime_dir = "{work}/run"

[pools]
roots = ["{work}/pools"]

[cache]
wait_s = 2

[uploads]
first_probe_s = 1
last_probe_s = 1
last_retry_s = 2

[[cache.pools]]
name = "demo"
directory = "{work}/cache"
limit = "128MiB"

[kvm]
libvirt_uri = "none"

[api]
socket = "{work}/run/api.sock"
"""
ISO_SIZE = 64 * MiB


def agent(work: Path, *arguments: str, expect: int = 0) -> None:
    """Run the command line where the reader sees it; its exit code is part of what is shown."""
    print("$ storage-agent", *arguments, flush=True)
    code = subprocess.run([AGENT, *arguments], env=environment(work), check=False).returncode
    if code != expect:
        raise SystemExit(f"storage-agent {arguments[0]} ended with {code}, expected {expect}")


def environment(work: Path) -> dict[str, str]:
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm-256color" if sys.stdout.isatty() else "dumb",
        "STORAGE_AGENT_CONFIG": str(work / "agent.toml"),
        "STORAGE_AGENT_SOCKET": str(work / "run" / "api.sock"),
    }


def in_s3(server: S3Server, endpoint: str, key: str, image_format: str) -> dict[str, object]:
    return {
        "type": "template",
        "path": key,
        "format": image_format,
        "hypervisorType": "KVM",
        "imageDataStore": {
            "storeType": "s3",
            "endPoint": endpoint,
            "bucketName": BUCKET,
            "accessKey": server.access_key,
            "secretKey": server.secret_key,
        },
    }


def iso_command(name: str, data: dict[str, object], vm: str) -> dict[str, object]:
    return {"command": name, "vmName": vm, "disk": {"type": "ISO", "data": data}}


def copy_command(server: S3Server, key: str, *, size: int) -> dict[str, object]:
    return {
        "command": "Copy",
        "deadline_s": 900,
        "source": in_s3(server, server.endpoint, key, "QCOW2"),
        "destination": {
            "type": "volume",
            "uuid": "5f7b3c1e-demo",
            "path": "5f7b3c1e-demo",
            "format": "QCOW2",
            "size": size,
            "dataStore": {"storeType": "primary", "uuid": "demo-pool", "poolType": "Filesystem", "path": "POOL"},
        },
    }


def write_command(work: Path, name: str, command: dict[str, object]) -> str:
    """Commands hold credentials: the file is readable by its owner alone."""
    path = work / name
    path.touch(mode=0o600)
    path.write_text(json.dumps(command, indent=1).replace('"POOL"', json.dumps(str(work / "pools" / "demo"))))
    return str(path)


@contextmanager
def daemon(work: Path) -> Iterator[None]:
    (work / "agent.toml").write_text(CONFIG.format(work=work))
    for name in ("state", "run"):
        (work / name).mkdir(mode=0o700)
    (work / "pools" / "demo").mkdir(parents=True)
    log = work / "daemon.log"
    argv = ["/usr/bin/env", "-i", *(f"{k}={v}" for k, v in environment(work).items()), str(AGENT), "run"]
    with running(argv, log) as process:
        wait_for(lambda: ready(work), process, log)
        yield


def ready(work: Path) -> bool:
    asked = subprocess.run([AGENT, "status", "--json"], env=environment(work), capture_output=True, check=False)
    return asked.returncode == 0


def make_iso(path: Path, *, seed: int) -> None:
    tree = path.with_suffix("")
    tree.mkdir()
    (tree / "data").write_bytes(random.Random(seed).randbytes(ISO_SIZE))
    run("genisoimage", "-quiet", "-r", "-o", path, tree)


def make_hostile(path: Path) -> None:
    """A qcow2 whose backing file is a file of the host: who reads the disk would read /etc/passwd."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", path, "1G")


def guest_bytes(disk: Path, count: int) -> str:
    """Digest of the first bytes that a guest sees of this disk."""
    head = disk.with_name("head.raw")
    run("qemu-img", "dd", "-f", "qcow2", "-O", "raw", "bs=1M", f"count={count}", f"if={disk}", f"of={head}")
    return hashlib.sha256(head.read_bytes()).hexdigest()


def main() -> None:
    BUILD.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="demo-", dir=BUILD))
    try:
        show(work)
    finally:
        shutil.rmtree(work)
    print("\ndemo: ok")


def show(work: Path) -> None:
    say("a bootable template: Debian's kernel, busybox, and data beside them")
    template, hostile = work / "template.qcow2", work / "hostile.qcow2"
    build_disk(fetch_kernel(BUILD / "guest" / "kernel"), template, size=SIZE, payload=PAYLOAD, hashed_mib=HASHED_MIB)
    make_hostile(hostile)
    print(f"template.qcow2: {template.stat().st_size / MiB:.0f} MiB, {SIZE / GiB:.0f} GiB virtual")

    (work / "s3").mkdir()
    say("a real S3 server (SeaweedFS) on loopback, and the templates in it")
    with run_seaweed(work / "s3") as server:
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        client.upload_file(str(template), BUCKET, "template/tmpl/2/201/debian.qcow2")
        client.upload_file(str(hostile), BUCKET, "template/tmpl/2/202/hostile.qcow2")
        client.close()
        say("the daemon")
        with fault_proxy(server.port) as proxy, daemon(work):
            agent(work, "status")
            volumes(work, server, template)
            isos(work, server, proxy)
            backups(work)
    left = sorted(p.name for p in (work / "pools" / "demo").iterdir() if p.name != ".storage-agent")
    if left != ["5f7b3c1e-demo", "data", "restored"]:
        raise SystemExit(f"left in the pool: {left}")


def volumes(work: Path, server: S3Server, template: Path) -> None:
    good = write_command(work, "copy.json", copy_command(server, "template/tmpl/2/201/debian.qcow2", size=SIZE))
    say("what would be done, and why (runs nothing)")
    agent(work, "explain", good)
    say("one command: the template in S3 becomes a volume")
    agent(work, "submit", good)

    volume = work / "pools" / "demo" / "5f7b3c1e-demo"
    say("the content, compared by qemu-img, and the guest's own opinion")
    print(run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", template, volume).decode().strip())
    guest = boot(volume)
    print(f"booted: Linux {guest.kernel}, {guest.sectors * 512 / GiB:.0f} GiB disk, sha256 {guest.sha256[:16]}...")
    if guest.sha256 != guest_bytes(template, HASHED_MIB) or guest.sectors * 512 != SIZE:
        raise SystemExit("the guest read something else than the template holds")

    say("a hostile template: a qcow2 whose backing file is the host's /etc/passwd")
    command = copy_command(server, "template/tmpl/2/202/hostile.qcow2", size=SIZE)
    destination = command["destination"]
    assert isinstance(destination, dict)
    destination["path"] = destination["uuid"] = "hostile"
    agent(work, "submit", write_command(work, "hostile.json", command), expect=1)
    agent(work, "commands", "ls")


def isos(work: Path, server: S3Server, proxy: FaultProxy) -> None:
    first, second = work / "install.iso", work / "drivers.iso"
    client = server.client()
    for seed, path in enumerate((first, second)):
        make_iso(path, seed=seed)
        client.upload_file(str(path), BUCKET, f"template/tmpl/2/203/{path.name}")
    client.close()

    def attach(path: Path, vm: str, name: str = "Attach") -> str:
        data = in_s3(server, f"http://127.0.0.1:{proxy.port}", f"template/tmpl/2/203/{path.name}", "ISO")
        return write_command(work, f"{name}-{vm}-{path.stem}.json", iso_command(name, data, vm))

    say("an ISO in S3: KVM needs a file, S3 has none, so the cache makes one (runs nothing)")
    agent(work, "explain", attach(first, "i-2-7-VM"))
    say("attached: the file stays in the cache until the guest lets it go")
    agent(work, "submit", attach(first, "i-2-7-VM"))
    (copy,) = (path for path in (work / "cache" / "objects").rglob("*") if path.is_file() and path.suffix != ".json")
    if file_digest(copy) != file_digest(first):
        raise SystemExit("the cache holds something else than S3")
    sent = proxy.bytes_down
    print(f"S3 sent {sent} bytes; sha256 of the file {file_digest(copy)[:16]}..., as of the ISO")
    if sent < ISO_SIZE:
        raise SystemExit("the bytes came from somewhere else")

    say("a second guest: not one byte of the ISO leaves S3 again, only its version is looked at")
    agent(work, "submit", attach(first, "i-2-8-VM"))
    print(f"S3 sent {proxy.bytes_down - sent} bytes more")
    if proxy.bytes_down - sent > 4096:
        raise SystemExit("the second request should have been served from the cache")
    agent(work, "cache", "ls")
    agent(work, "cache", "explain", f"template/tmpl/2/203/{first.name}")

    say(
        "a full cache: what is attached does not go, another pool there is not, and the wait is over: refused with numbers"
    )
    agent(work, "submit", attach(second, "i-2-9-VM"), expect=3)
    say("the guests let go of it; now it makes room by itself")
    for vm in ("i-2-7-VM", "i-2-8-VM"):
        agent(work, "submit", attach(first, vm, "Dettach"))
    agent(work, "submit", attach(second, "i-2-9-VM"))
    agent(work, "cache", "stats")


def backups(work: Path) -> None:
    """With an S3 server of its own, to be killed."""
    (work / "s3-backups").mkdir()
    ports = seaweed_ports()
    with fault_proxy(ports[0]) as line:
        with run_seaweed(work / "s3-backups", ports=ports) as server:
            client = server.client()
            client.create_bucket(Bucket=BACKUPS)
            client.close()
            staged = take_backups(work, server, line)
            say("the S3 server is killed in the middle of the upload")
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
        line.rate_up = None
        say("nobody was told that it is stored: it is safe here, and is tried again and again")
        agent(work, "uploads", "wait", "--timeout", "2", expect=3)
        agent(work, "uploads", "ls")
        agent(work, "drain", "--wait", "--timeout", "1", expect=3)
        agent(work, "drain", "--end")
        with run_seaweed(work / "s3-backups", ports=ports) as again:
            say("the S3 server is back: the upload goes on by itself, with what was not sent yet")
            agent(work, "uploads", "wait", str(staged["upload"]))
            agent(work, "uploads", "ls")
            restore(work, again, line)


def in_pool(kind: str, path: str, **more: object) -> dict[str, object]:
    pool = {"storeType": "primary", "uuid": "demo-pool", "poolType": "Filesystem", "path": "POOL"}
    return {"type": kind, "path": path, "dataStore": pool, **more}


def backup(server: S3Server, line: FaultProxy, name: str, **more: object) -> dict[str, object]:
    store = in_s3(server, f"http://127.0.0.1:{line.port}", "", "")["imageDataStore"]
    assert isinstance(store, dict)
    return {"type": "snapshot", "path": f"data/{name}", "dataStore": store | {"bucketName": BACKUPS}, **more}


def take_backups(work: Path, server: S3Server, line: FaultProxy) -> dict[str, object]:
    """A full one, and one of what changed, of which not all has left when this returns. The answer about that."""

    def write(*actions: str) -> None:
        told = [part for action in actions for part in ("-c", action)]
        run("qemu-io", "-f", "qcow2", *told, work / "pools" / "demo" / "data")

    def copy(name: str, parent: str | None = None, **more: object) -> str:
        target = backup(server, line, name, parentSnapshotPath=f"data/{parent}" if parent else None)
        command = {"command": "Copy", "source": in_pool("snapshot", f"data/{name}"), "destination": target}
        return write_command(work, f"{name}.json", command | more)

    def submit(name: str, command: dict[str, object]) -> None:
        agent(work, "submit", write_command(work, f"{name}.json", command))

    say("a volume with 96 MiB of data, a snapshot of it, and a full backup into S3 with no file in between")
    submit("make", {"command": "CreateObject", "data": in_pool("volume", "data", size=GiB, format="QCOW2")})
    write("write -P 1 0 64M", "write -P 2 900M 32M")
    submit("snapshot-1", {"command": "CreateObject", "data": in_pool("snapshot", "data/monday")})
    agent(work, "submit", copy("monday"))

    say(
        "the guest goes on writing; the next backup has what changed, and is answered as soon as that is safe on this host"
    )
    write("write -P 3 32M 40M", "discard 900M 8M")
    submit("snapshot-2", {"command": "CreateObject", "data": in_pool("snapshot", "data/tuesday")})
    line.rate_up = 2 * MiB
    staged = asked(work, "submit", copy("tuesday", "monday", durability="staged"))
    print(json.dumps({name: staged[name] for name in ("state", "durability", "upload")}))
    wait_until(
        lambda: any(each["sent"] and each["state"] == "sending" for each in asked(work, "uploads", "ls")["uploads"])
    )
    agent(work, "uploads", "ls")
    return staged


def restore(work: Path, server: S3Server, line: FaultProxy) -> None:
    file = write_command(work, "tuesday-backup.json", backup(server, line, "tuesday"))
    agent(work, "backups", "tree", file, "--path", "data")
    agent(work, "backups", "verify", file)
    say("restored into a new volume, full backup and changes together")
    source = backup(server, line, "tuesday", parents=["data/monday"])
    command: dict[str, object] = {"command": "Copy", "source": source}
    command["destination"] = in_pool("volume", "restored", format="QCOW2")
    agent(work, "submit", write_command(work, "restore.json", command))
    pool = work / "pools" / "demo"
    print(run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", pool / "data", pool / "restored").decode().strip())
    say("may this host be switched off? everything that it has is stored")
    agent(work, "drain", "--wait")


def asked(work: Path, *arguments: str) -> dict[str, Any]:
    """What the command line answers to a program."""
    done = subprocess.run([AGENT, *arguments, "--json"], env=environment(work), capture_output=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def wait_until(true: Callable[[], bool]) -> None:
    late = time.monotonic() + 60
    while not true():
        if time.monotonic() > late:
            raise SystemExit("that did not happen within a minute")
        time.sleep(0.05)


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
