"""What this machine is and how busy it is, as a management server wants to know it. Read from /proc, /sys and /etc."""

from __future__ import annotations

import fcntl
import os
import platform
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.transports.cloudstack.models_pools import HostStatsEntry

_ADDRESS, _NETMASK = 0x8915, 0x891B  # SIOCGIFADDR and SIOCGIFNETMASK of <linux/sockios.h>
_IFREQ = struct.Struct("16s4x4s16x")  # struct ifreq with an IPv4 address in it


@dataclass(frozen=True, slots=True)
class Machine:
    """What does not change while it runs. `memory` in bytes; `speed` in MHz, 0 where the kernel does not say."""

    cpus: int
    speed: int
    memory: int
    arch: str
    system: str
    system_version: str
    kernel: str


@dataclass(frozen=True, slots=True)
class Interface:
    """The device that has an address of this host. IPv4."""

    address: str
    netmask: str | None = None
    mac: str | None = None


def read_machine(root: Path = Path("/")) -> Machine:
    """Blocking, for a moment."""
    release = _pairs(_text(root / "etc/os-release"), "=")
    return Machine(
        cpus=os.cpu_count() or 1,
        speed=_speed(root),
        memory=_kib(_pairs(_text(root / "proc/meminfo"), ":"), "MemTotal") * 1024,
        arch=platform.machine(),
        system=release.get("NAME", "").strip('"') or platform.system(),
        system_version=release.get("VERSION_ID", "").strip('"'),
        kernel=platform.release(),
    )


def interface_of(address: str, root: Path = Path("/")) -> Interface:
    """Netmask and hardware address of the device that has this IPv4 address; without them where none has it."""
    try:
        wanted = socket.inet_aton(address)
    except OSError:
        return Interface(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            if _ask(probe, _ADDRESS, name) == wanted:
                netmask = _ask(probe, _NETMASK, name)
                mac = _text(root / "sys/class/net" / name / "address").strip()
                return Interface(address, socket.inet_ntoa(netmask) if netmask else None, mac or None)
    return Interface(address)


def device_names(root: Path = Path("/")) -> frozenset[str]:
    """Of all network devices, bridges included."""
    with suppress(OSError):
        return frozenset(os.listdir(root / "sys/class/net"))
    return frozenset()


class Load:
    """How busy the machine was between two questions."""

    def __init__(self, clock: Callable[[], float], root: Path = Path("/")) -> None:
        """`clock` in seconds, of any beginning."""
        self._clock = clock
        self._root = root
        self._last = self._counters()

    def since_last(self, host_id: int) -> HostStatsEntry:
        """Blocking, for a moment. Rates are averages since the last call, or since this was made."""
        before, now = self._last, self._counters()
        self._last = now
        seconds = max(now.at - before.at, 1e-3)
        busy, total = now.busy - before.busy, now.total - before.total
        memory = _pairs(_text(self._root / "proc/meminfo"), ":")
        load, *_ = _text(self._root / "proc/loadavg").split() or ["0"]
        return HostStatsEntry(
            hostId=host_id,
            cpuUtilization=100.0 * busy / total if total > 0 else 0.0,
            averageLoad=float(load),
            networkReadKBs=max(0, now.received - before.received) / 1024 / seconds,
            networkWriteKBs=max(0, now.sent - before.sent) / 1024 / seconds,
            totalMemoryKBs=_kib(memory, "MemTotal"),
            freeMemoryKBs=_kib(memory, "MemAvailable"),
        )

    def _counters(self) -> _Counters:
        line, *_ = _text(self._root / "proc/stat").splitlines() or [""]
        ticks = [int(field) for field in line.split()[1:9]]  # user nice system idle iowait irq softirq steal: proc(5)
        idle = sum(ticks[3:5])
        received = sent = 0
        for device in _text(self._root / "proc/net/dev").splitlines()[2:]:
            name, _, fields = device.partition(":")
            numbers = fields.split()
            if name.strip() != "lo" and len(numbers) > 8:
                received += int(numbers[0])
                sent += int(numbers[8])
        return _Counters(self._clock(), sum(ticks) - idle, sum(ticks), received, sent)


@dataclass(frozen=True, slots=True)
class _Counters:
    """Since the machine started: CPU time in ticks, network in bytes."""

    at: float
    busy: int
    total: int
    received: int
    sent: int


def _ask(probe: socket.socket, request: int, name: str) -> bytes | None:
    with suppress(OSError):  # a device without such an address
        answer = fcntl.ioctl(probe, request, _IFREQ.pack(name.encode()[:15], b""))
        return bytes(_IFREQ.unpack(answer)[1])
    return None


def _speed(root: Path) -> int:
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "cpu MHz":
            return int(float(value))
    khz = _text(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").strip()
    return int(khz) // 1000 if khz.isdigit() else 0


def _text(path: Path) -> str:
    """Empty where there is no such file."""
    with suppress(OSError):
        return path.read_text()
    return ""


def _pairs(text: str, separator: str) -> dict[str, str]:
    return {name.strip(): value.strip() for name, _, value in (line.partition(separator) for line in text.splitlines())}


def _kib(fields: dict[str, str], name: str) -> int:
    number, *_ = fields.get(name, "0").split() or ["0"]
    return int(number)
