"""What systemd and the daemon say to each other: readiness, status, watchdog, and listening sockets.

The protocol is that of sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3): datagrams of `NAME=value` lines to the unix
socket in `$NOTIFY_SOCKET`, and inherited descriptors from 3 on. Without systemd everything here does nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, MutableMapping

FIRST_FD = 3  # SD_LISTEN_FDS_START


class Notifier:
    """Tells systemd how the service is doing. A message that cannot be delivered is dropped: there is nobody to tell."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # "@name" is systemd's spelling of a socket in the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._interval = _watchdog_interval(environment)

    def ready(self, status: str) -> None:
        self._send("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """One line that `systemctl status` shows."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        self._send("STOPPING=1", "STATUS=stopping")

    async def watchdog(self) -> None:
        """Send keep-alives at half of `$WATCHDOG_USEC` until cancelled; return at once where no watchdog is set.

        Being a task of the loop is the point: a loop that hangs stops sending, and systemd restarts the service.
        """
        while self._interval is not None:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._interval)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            try:
                channel.sendto("\n".join(line.replace("\n", " ") for line in lines).encode(), self._address)
            except OSError:
                return


def _watchdog_interval(environment: Mapping[str, str]) -> float | None:
    """Seconds between keep-alives. `$WATCHDOG_PID` keeps children from answering in the service's name."""
    period = environment.get("WATCHDOG_USEC", "")
    if not period.isdecimal() or int(period) == 0:
        return None
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(period) / 2 / 1_000_000


def listen_sockets(environment: MutableMapping[str, str] = os.environ) -> dict[str, list[socket.socket]]:
    """The listening sockets that systemd passed, by their `FileDescriptorName=`.

    Takes the variables out of the environment, so that no child believes that they are meant for it. Unnamed sockets are
    listed under "unknown", which is systemd's word for them.
    """
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "")
    if environment.pop("LISTEN_PID", "") != str(os.getpid()) or not count.isdecimal():
        return {}
    labels = names.split(":") if names else []
    passed: dict[str, list[socket.socket]] = {}
    for index in range(int(count)):
        descriptor = FIRST_FD + index
        os.set_inheritable(descriptor, False)
        label = labels[index] if index < len(labels) else "unknown"
        passed.setdefault(label, []).append(socket.socket(fileno=descriptor))
    return passed
