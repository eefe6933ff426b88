"""The links of the configured roles, as one of the daemon's transports."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from cryptography import x509

from agent.config import CloudStackSection
from agent.failures import tell
from agent.security import SecuritySetup
from agent.transports.cloudstack.contract import Role, Watcher
from agent.transports.cloudstack.link import Link, LinkSettings
from agent.transports.cloudstack.roles.identity import Identity as RoleIdentity
from agent.transports.cloudstack.servers import Servers, parse_server
from agent.transports.cloudstack.state import StateDirectory
from agent.transports.cloudstack.tls import Identity, client_context, read_pins
from stores.os_errors import translated

_log = structlog.get_logger(__name__)

_GUID = "guid"

Roles = Callable[[RoleIdentity, RoleIdentity], Sequence[Role]]
"""The configured roles: of the host, and of the secondary storage VM, each by who it says it is."""


class CloudStackLinks:
    """The `Transport`. Starting does not wait for any server: links come up when they can, and stay up."""

    def __init__(
        self, section: CloudStackSection, state_dir: Path, roles: Roles, watcher: Callable[[str], Watcher]
    ) -> None:
        """`watcher`: of the role of that name."""
        self._section = section
        self._state_dir = state_dir
        self._roles = roles
        self._watcher = watcher
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """SecuritySetup for certificates that cannot be used, StoreError for a state directory that cannot."""
        links = await asyncio.to_thread(make_links, self._section, self._state_dir, self._roles, self._watcher)
        self._tasks = [asyncio.create_task(_keep_up(link), name=f"link {link.status.role}") for link in links]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []


async def _keep_up(link: Link) -> None:
    """One link that fails for good is no reason to give up the other, or the daemon."""
    try:
        await link.run()
    except Exception as error:  # noqa: BLE001  logged, by `tell` with its traceback where nobody foresaw it
        _log.error("link given up", role=link.status.role, error=tell(error).failure.message)


def make_links(
    section: CloudStackSection, state_dir: Path, roles: Roles, watcher: Callable[[str], Watcher]
) -> Sequence[Link]:
    """One for each role. Blocking; connects to nobody."""
    directory = state_dir / "cloudstack"
    settings = link_settings(section)
    client_context(settings.identity)  # what is wrong with the files is said now and not at the first attempt
    return [
        Link(
            role,
            Servers([parse_server(server, section.port) for server in section.servers], port=section.port),
            StateDirectory(directory / role.name),
            settings,
            watcher=watcher(role.name),
        )
        for role in roles(*_identities(section, StateDirectory(directory)))
    ]


def link_settings(section: CloudStackSection) -> LinkSettings:
    """Reads the certificates that the configuration names. SecuritySetup."""
    identity = None
    if section.tls_cert is not None and section.tls_key is not None:
        identity = Identity(section.tls_cert, section.tls_key)
    return LinkSettings(
        pins=_pins(section.ca_file),
        identity=identity,
        unverified=section.allow_unverified,
        connect_s=section.connect_s,
        retry_first_s=section.retry_first_s,
        retry_most_s=section.retry_last_s,
    )


def _pins(file: Path | None) -> tuple[x509.Certificate, ...]:
    if file is None:
        return ()
    try:
        return read_pins(file.read_bytes(), f"cloudstack.ca_file {file}")
    except OSError as error:
        raise SecuritySetup(f"cloudstack.ca_file {file} cannot be read: {error.strerror}", file=str(file)) from error


def _identities(section: CloudStackSection, state: StateDirectory) -> tuple[RoleIdentity, RoleIdentity]:
    """The roles have guids of their own: a server would take one for the other otherwise."""
    name = section.name or socket.gethostname()
    guid = section.guid or _kept_guid(state)
    host = RoleIdentity(guid, name, section.zone, section.pod, section.cluster, section.reserved_memory)
    storage = uuid.uuid5(uuid.UUID(guid), "secondary-storage")
    return host, RoleIdentity(str(storage), section.storage_vm or name, section.zone, section.pod)


def _kept_guid(state: StateDirectory) -> str:
    """Made once, and the same ever after."""
    known = (state.read(_GUID) or b"").decode("ascii", "replace").strip()
    with translated(str(state.path / _GUID)):
        try:
            return str(uuid.UUID(known))
        except ValueError:
            made = str(uuid.uuid4())
            state.write(_GUID, made.encode())
            return made
