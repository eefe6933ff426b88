"""The talk with systemd, over real sockets and real inherited descriptors."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.sdnotify import Notifier, listen_sockets


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """systemd's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(10)
        yield end


def told(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_states(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(manager.getsockname())})
    notifier.ready("3 commands\nrecovered")
    assert told(manager) == ["READY=1", "STATUS=3 commands recovered"]
    notifier.status("running 2")
    assert told(manager) == ["STATUS=running 2"]
    notifier.stopping()
    assert told(manager)[0] == "STOPPING=1"


def test_abstract_sockets() -> None:
    name = f"storage-agent-test-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        manager.settimeout(10)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready("")
        assert told(manager) == ["READY=1", "STATUS="]


def test_nobody_listens(tmp_path: Path) -> None:
    Notifier({}).ready("")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).stopping()


async def test_the_watchdog_is_fed_by_the_loop_until_cancelled(manager: socket.socket) -> None:
    notifier = Notifier(
        {"NOTIFY_SOCKET": str(manager.getsockname()), "WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())}
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(notifier.watchdog())
        for _ in range(3):
            assert await asyncio.to_thread(told, manager) == ["WATCHDOG=1"]
        task.cancel()
    manager.settimeout(0.3)
    # One may have been on its way when the task ended; after it there is silence.
    with pytest.raises(TimeoutError):  # noqa: PT012
        manager.recv(4096)
        manager.recv(4096)


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}],
)
async def test_no_watchdog_is_asked_for(environment: dict[str, str]) -> None:
    await asyncio.wait_for(Notifier(environment).watchdog(), 5)


_CHILD = """
import os, socket, sys
from agent.sdnotify import listen_sockets
os.environ["LISTEN_PID"] = sys.argv[1] or str(os.getpid())
passed = listen_sockets()
print({name: [s.getsockname() for s in sockets] for name, sockets in passed.items()})
print(sorted(name for name in os.environ if name.startswith("LISTEN_")))
print([os.get_inheritable(s.fileno()) for sockets in passed.values() for s in sockets])
"""


def child(tmp_path: Path, pid: str = "", **environment: str) -> list[str]:
    """A process that inherits two listening sockets as descriptors 3 and 4."""
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        for sock, name in ((one, "a"), (other, "b")):
            sock.bind(str(tmp_path / name))
            sock.listen()
        # Through high numbers first, so that neither source is overwritten by the other's target.
        script = 'exec 10<&"$1" 11<&"$2" 3<&10 4<&11 10<&- 11<&-; shift 2; exec "$@"'
        descriptors = (one.fileno(), other.fileno())
        done = subprocess.run(
            ["/bin/bash", "-c", script, "sh", *map(str, descriptors), sys.executable, "-c", _CHILD, pid],
            env={"PATH": "/usr/bin:/bin", **environment},
            cwd=Path(__file__).parents[2],
            pass_fds=descriptors,
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stdout.splitlines()


def test_sockets_come_by_name_and_are_no_child_s_business(tmp_path: Path) -> None:
    passed, left, inheritable = child(tmp_path, LISTEN_FDS="2", LISTEN_FDNAMES="unix:tcp")
    assert passed == str({"unix": [str(tmp_path / "a")], "tcp": [str(tmp_path / "b")]})
    assert left == "[]"
    assert inheritable == "[False, False]"


def test_sockets_without_names(tmp_path: Path) -> None:
    passed, _, _ = child(tmp_path, LISTEN_FDS="2")
    assert passed == str({"unknown": [str(tmp_path / "a"), str(tmp_path / "b")]})


def test_sockets_for_another_process_are_left_alone(tmp_path: Path) -> None:
    passed, left, _ = child(tmp_path, "1", LISTEN_FDS="2")
    assert (passed, left) == ("{}", "[]")


def test_no_sockets() -> None:
    assert listen_sockets({}) == {}
