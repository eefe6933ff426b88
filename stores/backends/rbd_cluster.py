"""One pool of a Ceph cluster: who we are there, and what Ceph says as our errors.

Whoever calls Ceph, qemu too, finds monitors, user and key in files of a folder that nobody else may enter: nothing of that is
in an argv. A cluster that does not answer is given up after the connection's time, whatever is asked of it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stores.backends.rbd_calls import CallFailed, RbdCalls
from stores.backends.rbd_place import RbdLogin, RbdPlace
from stores.errors import AccessDenied, AlreadyExists, NoSpace, NotFound, StorageError, Unavailable
from stores.os_errors import translated
from stores.tools.process import ToolFailed, ToolRunner
from stores.transfer.engine import TransferEngine
from stores.uninterrupted import uninterrupted

_QUICK_S = 120.0
"""Deadline of what only touches metadata, beyond what connecting may take."""

_NOT_REACHED = (errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.EHOSTUNREACH)
"""ESHUTDOWN: the cluster has shut this client out."""

_CONF = """[global]
mon host = {monitors}
keyring = {keyring}
client mount timeout = {connect_s}
rados mon op timeout = {connect_s}
rados osd op timeout = {silent_s}
log file = /dev/null
log to stderr = false
err to stderr = false
admin socket =
"""


class Cluster:
    """One pool of a Ceph cluster, and who we are there. `login` may block; it is asked once."""

    def __init__(
        self,
        place: RbdPlace,
        login: Callable[[], RbdLogin],
        engine: TransferEngine,
        tools: ToolRunner,
        runtime_dir: Path,
        *,
        connect_s: float,
        silent_s: float,
    ) -> None:
        self.pool = place.pool
        self._place = place
        self._login = login
        self._engine = engine
        self._calls = RbdCalls(tools)
        self._folder = runtime_dir / "rbd" / secrets.token_hex(6)
        self._connect_s = connect_s
        self._silent_s = silent_s
        self._entering = asyncio.Lock()
        self._known: RbdLogin | None = None

    @property
    def conf(self) -> Path:
        """What tells a client of Ceph everything, once `entered`."""
        return self._folder / "ceph.conf"

    @property
    def hosts(self) -> tuple[tuple[str, int], ...]:
        """Its monitors."""
        return self._place.hosts

    async def entered(self) -> RbdLogin:
        """As whom; the files are there from now on."""
        async with self._entering:
            if self._known is None:
                await uninterrupted(self._engine.run(self._enter))
        assert self._known is not None
        return self._known

    async def call(self, name: str, *, ref: str, long: bool = False, **arguments: object) -> Any:
        """What `rbd_worker` does by that name. `long`: as long as the command itself may take."""
        told = (str(self.conf), (await self.entered()).user, self.pool)
        deadline = None if long else self._connect_s + _QUICK_S
        try:
            return await self._calls.call(told, name, arguments, deadline)
        except CallFailed as error:
            raise explained(error, self.pool, ref) from error
        except TimeoutError as error:
            raise Unavailable(f"pool {self.pool} of Ceph did not answer within {deadline:g} s", ref=ref) from error

    async def aclose(self) -> None:
        """Idempotent."""
        await self._calls.aclose()
        if self._known is not None:
            self._known = None
            await uninterrupted(self._engine.run(self._remove_files))

    def _enter(self) -> None:
        login = self._login()
        try:
            self._write_files(login)
        except BaseException:
            self._remove_files()
            raise
        self._known = login

    def _write_files(self, login: RbdLogin) -> None:
        with translated(str(self._folder)):
            with suppress(FileExistsError):
                os.mkdir(self._folder.parent, 0o700)
            with suppress(FileExistsError):
                os.mkdir(self._folder, 0o700)
        keyring = self._folder / "keyring"
        _write(keyring, f"[client.{login.user}]\n\tkey = {login.key.reveal()}\n".encode())
        conf = _CONF.format(
            monitors=self._place.monitors,
            keyring=keyring,
            connect_s=max(1, round(self._connect_s)),
            silent_s=max(1, round(self._silent_s)),
        )
        _write(self.conf, conf.encode())

    def _remove_files(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with translated(str(path)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


def explained(error: CallFailed, pool: str, ref: str) -> StorageError:
    """By the number that Ceph gives beside its text."""
    said, number = error.said, error.number
    if error.connecting or number in _NOT_REACHED:
        return Unavailable(
            f"pool {pool} of Ceph cannot be reached, or does not know the user and the key: {said}", pool=pool, ref=ref
        )
    match number:
        case errno.ENOSPC | errno.EDQUOT:
            return NoSpace(f"pool {pool} of Ceph is full: {said}; free space or use another pool", pool=pool, said=said)
        case errno.ENOENT:
            return NotFound(f"pool {pool} of Ceph does not have {ref}: {said}", pool=pool, ref=ref)
        case errno.EEXIST:
            return AlreadyExists(f"{ref} exists already in pool {pool} of Ceph", pool=pool, ref=ref)
        case errno.EPERM | errno.EACCES:
            return AccessDenied(f"the user may not do that in pool {pool} of Ceph: {said}", pool=pool, ref=ref)
        case errno.EBUSY | errno.EROFS:
            return Unavailable(f"{ref} is in use in pool {pool} of Ceph: {said}; try again later", pool=pool, ref=ref)
    return ToolFailed(f"pool {pool} of Ceph refused what was to be done with {ref}: {said}", exit_code=number)
