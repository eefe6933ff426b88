"""Where the images of an RBD pool are, and as whom it is entered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stores.errors import AccessDenied, InvalidReference
from stores.secret import MASK, Secret
from stores.to import PrimaryDataStoreTO

_NAME = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]*")
_HOST = re.compile(r"[A-Za-z0-9.:_-]+|\[[0-9A-Fa-f:.]+\](:\d+)?")
_SECTION = re.compile(r"\[client\.([A-Za-z0-9._-]+)\]")
_KEY = re.compile(r"[A-Za-z0-9+/=]+")
_SIZE_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class RbdLogin:
    """`key` as Ceph prints it."""

    user: str
    key: Secret = field(repr=False)


PORT = 6789
"""A monitor's, where none is said; all versions of Ceph listen there."""


@dataclass(frozen=True, slots=True)
class RbdPlace:
    """`monitors` as in `mon host`. Without `login` the settings have to name a keyring."""

    monitors: str
    pool: str
    login: RbdLogin | None

    @property
    def hosts(self) -> tuple[tuple[str, int], ...]:
        """The monitors, one by one."""
        return tuple(_host(each) for each in self.monitors.split(","))


def place_of_pool(to: PrimaryDataStoreTO) -> RbdPlace:
    """Of a pool of type RBD: `host` (monitors, by commas), `port`, `path` (a pool of Ceph's); in `details` `user` and `secret`.

    `InvalidReference` for what cannot be in Ceph's configuration: nothing of it is quoted there."""
    hosts = [host.strip() for host in (to.host or "").split(",")]
    pool = (to.path or "").strip("/")
    if not all(_HOST.fullmatch(host) for host in hosts) or not _NAME.fullmatch(pool):
        raise InvalidReference(
            f"pool {to.uuid} of type RBD needs a host (its monitors), and a path (the name of a pool of Ceph)",
            pool=to.uuid,
        )
    port = f":{to.port}" if to.port else ""
    monitors = ",".join(host if ":" in host else host + port for host in hosts)
    words = {key: secret.reveal() for key, secret in (to.details or {}).items()}
    return RbdPlace(monitors, pool, _login(words.get("user"), words.get("secret")))


def login_for(place: RbdPlace, uuid: str, keyrings: Mapping[str, Path]) -> RbdLogin:
    """What the pool came with, else what the operator keeps for it. Reads a file then: blocking."""
    if place.login is not None:
        return place.login
    for name in (uuid, place.pool):
        if name in keyrings:
            return parse_keyring(_read(keyrings[name]), keyrings[name])
    raise AccessDenied(
        f"pool {place.pool} of Ceph needs a user and a key: give `user` and `secret` in the pool's details, or name a keyring"
        " for it in the setting rbd.keyrings",
        pool=place.pool,
    )


def parse_keyring(text: str, path: Path) -> RbdLogin:
    """Its first `[client.NAME]` with a `key = ...`, as `ceph auth get` prints it. Nothing of it is quoted."""
    user = None
    for line in text.splitlines():
        section = _SECTION.fullmatch(line.strip())
        user = section[1] if section else user
        name, _, value = line.partition("=")
        if user is not None and name.strip() == "key":
            login = _login(user, value.strip())
            if login is not None:
                return login
    raise AccessDenied(f"the file {path} is no keyring of Ceph: it needs a line [client.NAME], and below it key = ...")


def _host(monitor: str) -> tuple[str, int]:
    """`[v2:]HOST[:PORT]`; an address of IPv6 that has a port is in brackets."""
    monitor = monitor.removeprefix("v1:").removeprefix("v2:")
    host, colon, port = monitor.rpartition(":")
    if not colon or monitor.endswith("]") or (":" in host and not host.startswith("[")):
        host, port = monitor, str(PORT)
    return host.strip("[]"), int(port) if port.isdecimal() else PORT


def _login(user: str | None, key: str | None) -> RbdLogin | None:
    """None where there is none, and where a journal has masked what there was."""
    if not user or not key or MASK in (user, key):
        return None
    if not _NAME.fullmatch(user) or not _KEY.fullmatch(key):
        raise InvalidReference(
            "the user or the secret of an RBD pool is malformed: they are as `ceph auth get` prints them"
        )
    return RbdLogin(user, Secret(key))


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_SIZE_LIMIT)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise AccessDenied(f"the keyring {path} cannot be read: {reason}") from None
