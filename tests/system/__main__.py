"""`make test-system`: the package installed in a Debian guest with a kernel of its own, and the unit started by systemd.

Not part of `make test`: the guest is emulated, and everything in it takes ten times as long. `python -m tests.system nfs` does
only what it names.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.demo.stage import say
from tests.guest import run
from tests.servers import S3Server, run_seaweed
from tests.system import lvm, nfs, unit
from tests.system.agent import Agent
from tests.system.image import image
from tests.system.machine import booted
from tests.system.package import package

BUILD = Path(__file__).parents[2] / "build"
LIMIT_S = 60 * 60  # five minutes on an idle machine
FLOWS = {"unit": unit.works, "nfs": nfs.works, "lvm": lvm.works}


def main(*named: str) -> None:
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT_S)
    BUILD.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="system-", dir=BUILD))
    try:
        show(work, [FLOWS[name] for name in named or FLOWS])
    finally:
        shutil.rmtree(work)
    print("\nsystem: ok")


def _too_long(*_: object) -> None:
    raise SystemExit(f"it has taken longer than {LIMIT_S} s")


def show(work: Path, flows: Sequence[Callable[[Agent, S3Server], None]]) -> None:
    say("a Debian guest with systemd, and the agent as a Debian package")
    made = image(BUILD)
    archive = work / "package.tar"
    deb = package(BUILD)
    run("tar", "-C", deb.parent, "-cf", archive, deb.name)
    with run_seaweed(work) as server, booted(made, [archive]) as machine:
        agent = Agent(machine)
        say("the package is installed")
        agent.install("/dev/vdb")
        unit.starts(agent)
        for flow in flows:
            flow(agent, server)
        unit.stops(agent)


if __name__ == "__main__":
    main(*sys.argv[1:])
