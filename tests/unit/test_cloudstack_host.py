"""What the machine says of itself, read from a small tree in the form of /proc and /sys, and from the real one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from agent.transports.cloudstack.roles.host import Load, device_names, interface_of, read_machine

STAT = "cpu  {user} 0 {system} {idle} 0 0 0 0 0 0\ncpu0 1 1 1 1\n"
NETWORK = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets
    lo: 999999 1 0 0 0 0 0 0 999999 1
  eth0: {received} 1 0 0 0 0 0 0 {sent} 1
"""


def machine(root: Path, *, user: int = 0, system: int = 0, idle: int = 0, received: int = 0, sent: int = 0) -> Path:
    for folder in ("proc/net", "etc", "sys/class/net/eth0", "sys/class/net/cloudbr0"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "etc/os-release").write_text('NAME="Debian GNU/Linux"\nVERSION_ID="12"\n\nbroken\n')
    (root / "proc/meminfo").write_text("MemTotal:  2048 kB\nMemFree:  1 kB\nMemAvailable:  1024 kB\n")
    (root / "proc/cpuinfo").write_text("processor : 0\ncpu MHz\t\t: 2400.123\n")
    (root / "proc/loadavg").write_text("0.50 0.40 0.30 1/100 1234\n")
    (root / "proc/stat").write_text(STAT.format(user=user, system=system, idle=idle))
    (root / "proc/net/dev").write_text(NETWORK.format(received=received, sent=sent))
    return root


def test_a_machine_is_what_its_kernel_says(tmp_path: Path) -> None:
    found = read_machine(machine(tmp_path))
    assert (found.system, found.system_version) == ("Debian GNU/Linux", "12")
    assert (found.memory, found.speed) == (2048 * 1024, 2400)
    assert device_names(tmp_path) == {"eth0", "cloudbr0"}


def test_load_is_of_the_time_between_two_questions(tmp_path: Path) -> None:
    now = [100.0]
    load = Load(lambda: now[0], machine(tmp_path, user=10, idle=90, received=1000, sent=1000))
    now[0] += 4
    machine(tmp_path, user=20, system=15, idle=165, received=1000 + 8192, sent=1000 + 4096)
    first = load.since_last(7)
    assert first.model_dump() == {
        "hostId": 7,
        "entityType": "host",
        "cpuUtilization": 25.0,
        "averageLoad": 0.5,
        "networkReadKBs": 2.0,
        "networkWriteKBs": 1.0,
        "totalMemoryKBs": 2048.0,
        "freeMemoryKBs": 1024.0,
    }
    now[0] += 1
    idle = load.since_last(7)
    assert (idle.cpuUtilization, idle.networkReadKBs, idle.networkWriteKBs) == (0, 0, 0)


def test_counters_that_begin_again_are_not_negative(tmp_path: Path) -> None:
    load = Load(lambda: 0.0, machine(tmp_path, user=50, idle=50, received=1000, sent=1000))
    machine(tmp_path)
    entry = load.since_last(1)
    assert min(entry.cpuUtilization, entry.networkReadKBs, entry.networkWriteKBs) >= 0


def test_a_machine_that_says_nothing_has_zeros(tmp_path: Path) -> None:
    found = read_machine(tmp_path)
    assert (found.memory, found.speed) == (0, 0)
    assert found.cpus > 0
    assert Load(lambda: 0.0, tmp_path).since_last(1).totalMemoryKBs == 0
    assert device_names(tmp_path) == frozenset()


def test_this_machine() -> None:
    found = read_machine()
    assert found.memory > 0
    assert found.arch
    assert interface_of("127.0.0.1").netmask == "255.0.0.0"
    assert interface_of("127.0.0.1").mac == "00:00:00:00:00:00"
    assert {name for _, name in socket.if_nameindex()} <= device_names()


@pytest.mark.parametrize("address", ["192.0.2.1", "::1", "nobody", ""])
def test_an_address_that_no_device_has_is_told_alone(address: str) -> None:
    found = interface_of(address)
    assert (found.address, found.netmask, found.mac) == (address, None, None)
