"""Whole daemons and their deaths: two that share one pool of the cache by PostgreSQL, and one that is killed while it fills."""

from __future__ import annotations

import shutil
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from stores.contract import MiB
from tests.agent_process import WAIT_S, AgentHost, agent_host
from tests.doubles.disk_images import DiskImages, file_hash
from tests.doubles.fault_proxy import FaultProxy, fault_proxy
from tests.pools import bytes_on_disk
from tests.postgres import PASSWORD, USER, Postgres
from tests.servers import NginxServer

LIMIT = 40 * MiB  # housekeeping, and room for both ISOs
RATE = 2 * MiB  # bytes per second of each connection

OPTIONS = """
[urls]
allow_http = true
allow_networks = ["127.0.0.0/8"]
ports = []

[[cache.pools]]
name = "shared"
directory = "{directory}"
limit = {limit}
lease_s = 5
"""


@dataclass(frozen=True)
class Iso:
    """An ISO on a web server, behind a slow line."""

    nginx: NginxServer
    path: Path
    line: FaultProxy

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @property
    def sent(self) -> int:
        """Bytes of it that the server's log says it has sent, beside the one byte by which each look at it asks. A request
        is in the log when it is over."""
        lines = [line for line in self.nginx.access_log.read_text().splitlines() if f"/{self.path.name} " in line]
        sizes = [int(line.split('"')[2].split()[1]) for line in lines]  # of the combined log format
        return sum(size for size in sizes if size > 1)

    def command(self, name: str, vm: str) -> dict[str, Any]:
        store = {"storeType": "image", "uri": f"http://127.0.0.1:{self.line.port}/"}
        data = {"type": "template", "path": self.path.name, "format": "ISO", "imageDataStore": store}
        return {"command": name, "vmName": vm, "disk": {"type": "ISO", "data": data}}


@pytest.fixture
def isos(nginx: NginxServer, disk_images: DiskImages) -> Iterator[Callable[[int], Iso]]:
    made = []

    def make(size: int) -> Iso:
        path = nginx.root / f"{uuid.uuid4().hex}.iso"
        shutil.copy(disk_images["iso"].path, path)
        with path.open("r+b") as file:
            file.truncate(size)
        made.append(path)
        return Iso(nginx, path, line)

    with fault_proxy(nginx.port) as line:
        line.rate = RATE
        yield make
    for path in made:
        path.unlink()


def begin(host: AgentHost, command: dict[str, Any]) -> str:
    """The id of a command that goes on."""
    return str(host("submit", host.write(command), "--no-wait", "--json").json["id"])


def run(host: AgentHost, command: dict[str, Any]) -> dict[str, Any]:
    done = host("submit", host.write(command), "--json")
    assert done.code == 0, (done.out, host.log.read_text()[-3000:])
    return done.json


def show(host: AgentHost, command_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = host.call("GET", f"/v1/commands/{command_id}")[1]
    return answer


def ended(host: AgentHost, command_id: str, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
    def over() -> bool:
        meanwhile()
        return show(host, command_id)["state"] not in ("accepted", "running")

    until(over)
    return show(host, command_id)


def fetched(host: AgentHost, command_id: str) -> int:
    """How many bytes the command sees in the cache."""
    answer = show(host, command_id)
    assert answer["state"] in ("accepted", "running"), answer
    progress = answer.get("progress", {})
    return int(progress.get("bytes", 0)) if progress.get("phase") == "fetching into the cache" else 0


def until(true: Callable[[], bool]) -> None:
    late = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < late
        time.sleep(0.02)


def pool_of(host: AgentHost) -> dict[str, Any]:
    (pool,) = host("cache", "stats", "--json").json["pools"]
    assert "ailment" not in pool, pool
    return pool  # type: ignore[no-any-return]


def nothing_is_claimed(host: AgentHost, directory: Path, *, entries: int) -> bool:
    """No reservation, no pin, no one in line, and not a file beside those of the entries."""
    pool = pool_of(host)
    claimed = {name: pool[name] for name in ("reserved", "pinned", "fills", "waiting", "entries")}
    assert claimed == {"reserved": 0, "pinned": 0, "fills": 0, "waiting": 0, "entries": entries}
    assert list((directory / "fill").iterdir()) == []
    files = [path for path in (directory / "objects").rglob("*") if path.is_file()]
    assert len(files) == 2 * entries, files
    assert list((directory / "quarantine").iterdir()) == []
    return True


def bounded(directory: Path) -> None:
    assert bytes_on_disk(directory) <= LIMIT


@pytest.fixture
def pair(tmp_path: Path, postgres: Postgres, postgres_database: str) -> Iterator[tuple[AgentHost, AgentHost, Path]]:
    """Two hosts' daemons over one pool, and its directory."""
    directory, secret = tmp_path / "cache", tmp_path / "ledger-url"
    password = urllib.parse.quote(PASSWORD)
    secret.write_text(f"postgresql://{USER}:{password}@127.0.0.1:{postgres.port}/{postgres_database}")
    options = OPTIONS.format(directory=directory, limit=LIMIT) + f'database = "{secret}"\n'
    with ExitStack() as stack:
        one, other = (stack.enter_context(agent_host(options)) for _ in range(2))
        yield one, other, directory


def test_two_daemons_share_a_pool(pair: tuple[AgentHost, AgentHost, Path], isos: Callable[[int], Iso]) -> None:
    one, other, directory = pair
    first, second = isos(4 * MiB), isos(16 * MiB)

    commands = [(host, begin(host, first.command("Attach", vm))) for host, vm in ((one, "vm-1"), (other, "vm-2"))]
    answers = [ended(host, command, lambda: bounded(directory)) for host, command in commands]
    paths = {Path(answer["disk"]["path"]) for answer in answers}
    assert [answer["state"] for answer in answers] == ["succeeded"] * 2
    assert {file_hash(path) for path in paths} == {file_hash(first.path)}
    assert len(paths) == 1
    until(lambda: first.sent >= first.size)
    assert first.sent == first.size  # each byte once, for both

    leading = begin(one, second.command("Attach", "vm-1"))
    until(lambda: fetched(one, leading) > 0)
    following = begin(other, second.command("Attach", "vm-2"))
    until(lambda: fetched(other, following) > 0)
    one.stop(SIGKILL)
    before = second.line.bytes_down
    answer = ended(other, following, lambda: bounded(directory))
    assert answer["state"] == "succeeded", answer
    assert file_hash(Path(answer["disk"]["path"])) == file_hash(second.path)
    assert second.line.bytes_down - before < second.size  # gone on with, not begun anew

    one.start()
    assert show(one, leading)["error"]["kind"] == "Interrupted"
    assert file_hash(Path(run(one, second.command("Attach", "vm-1"))["disk"]["path"])) == file_hash(second.path)
    for host, vm in ((one, "vm-1"), (other, "vm-2")):
        for iso in (first, second):
            run(host, iso.command("Dettach", vm))
    for host in (one, other):
        assert nothing_is_claimed(host, directory, entries=2)
        assert host.stop() == 0


def test_killed_while_it_fills(tmp_path: Path, isos: Callable[[int], Iso]) -> None:
    directory, iso = tmp_path / "cache", isos(12 * MiB)
    with agent_host(OPTIONS.format(directory=directory, limit=LIMIT)) as host:
        command = begin(host, iso.command("Attach", "vm"))
        until(lambda: fetched(host, command) > 0)
        (part,) = (directory / "fill").iterdir()
        host.stop(SIGKILL)

        host.start()
        assert show(host, command)["error"]["kind"] == "Interrupted"
        pool = pool_of(host)
        assert (pool["pinned"], pool["waiting"], pool["entries"]) == (0, 0, 0)
        # What was fetched is kept for one lease for whoever wants to go on with it, within its reservation.
        assert {path.name for path in (directory / "fill").iterdir()} <= {part.name}
        assert pool["fills"] == len(list((directory / "fill").iterdir()))
        assert pool["reserved"] == 0 or pool["reserved"] >= iso.size

        attached = run(host, iso.command("Attach", "vm"))["disk"]
        assert file_hash(Path(attached["path"])) == file_hash(iso.path)
        run(host, iso.command("Dettach", "vm"))
        assert nothing_is_claimed(host, directory, entries=1)
        assert host.stop() == 0
