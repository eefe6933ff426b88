"""Which management server to turn to next, and when. No clock and no connections here."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass

PORT = 8250
ONCE = "shuffle"  # the algorithm with which the preferred server is gone back to only once


@dataclass(frozen=True, slots=True)
class Server:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_server(text: str, port: int = PORT) -> Server:
    """`HOST`, `HOST:PORT`, an IPv6 address, or one in brackets with a port. ValueError."""
    text = text.strip()
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} needs to be HOST, HOST:PORT or [IPv6]:PORT")
        return Server(str(ipaddress.IPv6Address(host)), _port(rest[1:]) if rest else port)
    if text.count(":") > 1:
        return Server(str(ipaddress.IPv6Address(text)), port)
    host, colon, number = text.partition(":")
    if not host or any(character.isspace() or character in "/@" for character in host):
        raise ValueError(f"{text!r} needs to be HOST, HOST:PORT or [IPv6]:PORT")
    return Server(host, _port(number) if colon else port)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ValueError(f"{text!r} is no port")
    return int(text)


class Servers:
    """The servers of one link. What the configuration names is used until a server sends a list."""

    def __init__(self, configured: Sequence[Server], *, port: int = PORT) -> None:
        """`port`: of servers that are named without one."""
        self._port = port
        self._servers = tuple(configured)
        self._avoided: frozenset[Server] = frozenset()
        self._algorithm = ""
        self._failures = 0
        self._returned = False
        self._wanted: Server | None = None
        self._at = 0
        self.check_interval_s = 0

    def take(self, listed: Sequence[str], avoid: Sequence[str], algorithm: str | None, interval_s: int | None) -> None:
        """A list as a server sends it, the preferred one first. Where there is none, nothing changes; an entry that cannot be
        read is left out."""
        servers = tuple(dict.fromkeys(_readable(listed, self._port)))
        if servers:
            self._avoided = frozenset(_readable(avoid, self._port))
            self._returned = self._returned and servers == self._servers
            self._servers = servers
            self._at = 0
            self._algorithm = algorithm or ""
            self.check_interval_s = max(interval_s or 0, 0)

    def avoid(self, listed: Sequence[str]) -> None:
        """Servers that are about to go away."""
        self._avoided = frozenset(_readable(listed, self._port))

    def current(self) -> Server:
        """Where to connect now."""
        if self._wanted is not None:
            return self._wanted
        order = [*self._servers[self._at :], *self._servers[: self._at]]
        return next((server for server in order if server not in self._avoided), order[0])

    def failed(self) -> None:
        """The connection could not be made, or was lost: the next one is tried."""
        self._failures += 1
        if self._wanted is not None:
            self._wanted = None
        else:
            self._at = (self._servers.index(self.current()) + 1) % len(self._servers)

    def succeeded(self) -> None:
        """A server took this agent in."""
        self._failures = 0
        if self._wanted in self._servers:
            self._at = self._servers.index(self._wanted)
        self._wanted = None

    def better_than(self, server: Server) -> Server | None:
        """The server to go back to from `server`, if any."""
        preferred = next((one for one in self._servers if one not in self._avoided), server)
        if preferred == server or (self._algorithm == ONCE and self._returned):
            return None
        return preferred

    def go_to(self, server: Server) -> None:
        """Connect there next, once."""
        self._wanted = server
        self._returned = True

    def others(self, server: Server) -> Sequence[Server]:
        """Where a connection may be moved to from `server`, in order of preference."""
        return [one for one in self._servers if one != server and one not in self._avoided]

    def delay_s(self, random: Callable[[], float], *, first_s: float, most_s: float) -> float:
        """How long to wait before the next attempt. Every server in the list is tried before the wait doubles; half of it is by
        chance (`random`, 0 to 1), so that the agents of a zone do not come back all at once."""
        rounds = max(self._failures - 1, 0) // len(self._servers)
        most = min(most_s, first_s * 2.0 ** min(rounds, 32))
        return most * (0.5 + random() / 2)

    def __str__(self) -> str:
        """As StartupCommand tells it: `HOST,HOST@ALGORITHM`."""
        hosts = ",".join(server.host for server in self._servers)
        return f"{hosts}@{self._algorithm}" if self._algorithm else hosts


def _readable(listed: Sequence[str], port: int) -> list[Server]:
    found = []
    for text in listed:
        try:
            found.append(parse_server(text.partition("@")[0], port))
        except ValueError:
            continue
    return found
