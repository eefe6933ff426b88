"""A template in S3 becomes a VHDX on a share of a Hyper-V host, against the classical way.

    python -m benchmarks.hyperv [--rounds N] [--disk ram|own] [--directory DIRECTORY] [--json FILE]

The classical way goes through files of the gateway: download by s5cmd, `qemu-img convert` to VHDX, `put` by smbclient, which
is Samba's own. The share is a real Samba, which lets nobody in without encryption; both ways end when the disk is on the
server's disk, which is one in memory (`ram`) or the machine's own, as is that of the gateway's files. The host, which only
tests the disk that was written, is a double (`tests/doubles/hyperv`). All share the machine's processors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.disk import ram_disk, write_rate
from benchmarks.harness import (
    Contestant,
    ContestantFailed,
    Row,
    Sample,
    Verdict,
    at_least,
    at_most,
    compare,
    conclude,
    show,
)
from benchmarks.image import RANDOM, TEXT, make_images
from benchmarks.tools import TOOLS, aws_environment
from stores.contract import GiB, MiB
from tests.doubles.hyperv import Host, running
from tests.hyperv import POOL
from tests.hyperv_agent import hyperv_config, in_s3, in_share
from tests.samba import SHARE, SambaServer, run_samba
from tests.servers import S3Server, run_seaweed

BUCKET, KEY, FOLDER = "bench", "template.qcow2", "vms"
DATA = RANDOM + TEXT
HELD = 100
"""MiB, the most that a transfer may need."""


@contextmanager
def own_disk(directory: Path) -> Iterator[Path]:
    """A directory on the disk that `directory` is on."""
    with tempfile.TemporaryDirectory(dir=directory) as made:
        yield Path(made).resolve()


@contextmanager
def host_of(folder: Path, share: Path) -> Iterator[Host]:
    """The double, in a thread of its own."""
    loop = asyncio.new_event_loop()
    begun, over = threading.Event(), asyncio.Event()
    hosts: list[Host] = []

    async def serve() -> None:
        async with running(folder, roots={POOL: share}) as host:
            hosts.append(host)
            begun.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()], name="fake Hyper-V host")
    thread.start()
    begun.wait()
    try:
        yield hosts[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def ours(work: Path, host: Host, samba: SambaServer, store: S3Server) -> Contestant:
    work.mkdir()
    config = hyperv_config(host, samba, FOLDER, work, roots=[work])
    config |= {"api": {"socket": str(work / "api.sock")}, "logs": {}}
    config["urls"] = {"allow_http": True, "allow_networks": ["127.0.0.0/8"], "ports": []}
    command = {
        "command": "Copy",
        "source": in_s3(store, BUCKET, "template", KEY, format="QCOW2"),
        "destination": in_share(samba, FOLDER, "template", "ours"),
    }
    for name, content in (("config.json", config), ("command.json", command)):
        (work / name).touch(mode=0o600)
        (work / name).write_text(json.dumps(content))
    return Contestant("storage-agent", [sys.executable, "-m", "benchmarks.hyperv_client", str(work)])


def classical(work: Path, samba: SambaServer, store: S3Server) -> Contestant:
    got, vhdx, login = work / "image", work / "image.vhdx", work.parent / "login"
    login.touch(mode=0o600)
    login.write_text(f"username=root\npassword={samba.password}\n")
    smbclient = f"smbclient //127.0.0.1/{SHARE} -s /dev/null -p {samba.port} -A {login} --client-protection=encrypt"
    script = [
        f"{TOOLS / 's5cmd'} --endpoint-url {store.endpoint} cp s3://{BUCKET}/{KEY} {got}",
        f"qemu-img convert -f qcow2 -O vhdx {got} {vhdx}",
        f"{smbclient} -c 'put {vhdx} {FOLDER}/classic.vhdx'",
        f"sync {samba.root / FOLDER / 'classic.vhdx'}",
        f"rm {got} {vhdx}",
    ]
    return Contestant("s5cmd + qemu-img + smbclient", ["sh", "-ec", "; ".join(script)], aws_environment(store))


def race(
    work: Path, image: Path, host: Host, samba: SambaServer, store: S3Server, rounds: int, disk: str
) -> tuple[list[Row], str]:
    files = work / "files"
    files.mkdir()

    def after(contestant: Contestant, sample: Sample) -> None:
        made = list((samba.root / FOLDER).glob("*.vhdx"))
        same = ["qemu-img", "compare", "-f", "qcow2", "-F", "vhdx", str(image), str(made[0])]
        if len(made) != 1 or subprocess.run(same, stdout=subprocess.DEVNULL, check=False).returncode != 0:
            raise ContestantFailed(f"{contestant.name} made another disk")
        for path in (samba.root / FOLDER).rglob("*"):
            if path.is_file():
                path.unlink()

    contestants: Sequence[Contestant] = [ours(work / "agent", host, samba, store), classical(files, samba, store)]
    rows = compare(contestants, rounds=rounds, after=after)
    title = f"template of {DATA / GiB:g} GiB, {disk} disk of {write_rate(work) / 1e6:.0f} MB/s"
    show(title, rows, size=DATA)
    return rows, title


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk", choices=["ram", "own"], default="ram", help="of the share and of the gateway's files")
    parser.add_argument("--directory", type=Path, default=Path("build/bench"), help="for the images")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    _, image = make_images(options.directory)
    with ExitStack() as stack:
        work = stack.enter_context(ram_disk(16 * GiB) if options.disk == "ram" else own_disk(options.directory))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hyperv-")))
        (work / "samba").mkdir()
        for name in ("s3", "host"):
            (folder / name).mkdir()
        store = stack.enter_context(run_seaweed(folder / "s3"))
        client = store.client()
        client.create_bucket(Bucket=BUCKET)
        client.upload_file(str(image), BUCKET, KEY)
        client.close()
        samba = stack.enter_context(run_samba(work / "samba", more="server smb encrypt = required"))
        (samba.root / FOLDER).mkdir()
        host = stack.enter_context(host_of(folder / "host", samba.root / FOLDER))
        rows, title = race(work, image, host, samba, store, options.rounds, options.disk)
    mine, theirs = rows
    verdicts: list[Verdict] = [
        at_least("template: time of the classical way / ours", theirs.wall_s / mine.wall_s, 2),
        at_most("template: bytes written to disks, MiB", mine.extra["written"] / MiB, 1),
        at_most("template: memory for the transfer, MiB", mine.extra["held"], HELD),
    ]
    conclude(verdicts, {title: rows}, options.json)
    return 0 if all(verdict.met for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
