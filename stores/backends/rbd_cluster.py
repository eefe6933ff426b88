"""Ceph's own tools on one pool, and what they say as our errors.

A tool finds monitors, user and key in files of a folder that nobody else may enter: nothing of that is in an argv. A cluster
that does not answer is given up after the connection's time, whatever the tool.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stores.backends.rbd_place import RbdLogin, RbdPlace
from stores.contract import MiB
from stores.errors import AccessDenied, AlreadyExists, NoSpace, NotFound, StorageError, Unavailable
from stores.os_errors import translated
from stores.tools.process import ToolFailed, ToolLimits, ToolRunner, ToolTimeout
from stores.transfer.engine import TransferEngine
from stores.uninterrupted import uninterrupted

_QUICK_S = 120.0
"""Deadline of what only touches metadata, beyond what connecting may take."""

_LIMITS = ToolLimits(address_space=None, output=64 * MiB)
"""librados reserves much more address space than it uses; what changed in a large image is a long text."""

_ERRNO = re.compile(r"\((\d+)\) [A-Z]")

_NOT_REACHED = ("couldn't connect", "error connecting", "failed to fetch mon config")

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
        self._tools = tools
        self._folder = runtime_dir / "rbd" / secrets.token_hex(6)
        self._connect_s = connect_s
        self._silent_s = silent_s
        self._entering = asyncio.Lock()
        self._user: str | None = None

    @property
    def conf(self) -> Path:
        """What tells a client of Ceph everything, once `entered`."""
        return self._folder / "ceph.conf"

    async def entered(self) -> str:
        """The user; the files are there from now on."""
        async with self._entering:
            if self._user is None:
                await uninterrupted(self._engine.run(self._enter))
        assert self._user is not None
        return self._user

    def spec(self, name: str, tag: str | None = None) -> str:
        """An image, or its snapshot, to the tool `rbd`."""
        return f"{self.pool}/{name}" + ("" if tag is None else f"@{tag}")

    async def rbd(self, *argv: str, ref: str, long: bool = False) -> bytes:
        """`long`: as long as the command itself may take."""
        return await self._run(["rbd", *argv], ref, None if long else _QUICK_S)

    async def asked(self, *argv: str, ref: str, long: bool = False) -> Any:
        """What `rbd` says, parsed."""
        return json.loads(await self.rbd(*argv, "--format", "json", ref=ref, long=long))

    async def rados(self, *argv: str, ref: str) -> bytes:
        return await self._run(["rados", "-p", self.pool, *argv], ref, _QUICK_S)

    async def statistics(self) -> dict[str, int] | None:
        """Of the pool, as `ceph df` tells them; None where the cluster has none (yet)."""
        found = json.loads(await self._run(["ceph", "df", "--format", "json"], self.pool, _QUICK_S))
        return next((pool["stats"] for pool in found["pools"] if pool["name"] == self.pool), None)

    async def shut_out(self, address: str) -> None:
        """A client of the cluster, which is dead, is not waited for any more."""
        await self._run(["ceph", "osd", "blocklist", "add", address, "300"], address, _QUICK_S)

    async def given(self, content: bytes) -> Path:
        """A new file of the folder for a tool to read. Whoever asked for it removes it."""
        path = self._folder / secrets.token_hex(6)
        await self._engine.run(lambda: _write(path, content))
        return path

    async def aclose(self) -> None:
        """Idempotent."""
        if self._user is not None:
            self._user = None
            await uninterrupted(self._engine.run(self._remove_files))

    async def _run(self, argv: list[str], ref: str, deadline_s: float | None) -> bytes:
        tool, *arguments = argv
        user = await self.entered()
        told = [tool, "--conf", str(self.conf), "--id", user, *arguments]
        deadline = None if deadline_s is None else self._connect_s + deadline_s
        try:
            return (await self._tools.run(told, deadline_s=deadline, limits=_LIMITS)).stdout
        except ToolFailed as error:
            raise explained(error, self.pool, ref) from error
        except ToolTimeout as error:
            raise Unavailable(f"pool {self.pool} of Ceph did not answer: {error.message}", ref=ref) from error

    def _enter(self) -> None:
        login = self._login()
        try:
            self._write_files(login)
        except BaseException:
            self._remove_files()
            raise
        self._user = login.user

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


def explained(error: ToolFailed, pool: str, ref: str) -> StorageError:
    """By the number that Ceph's tools put before its text, or end with."""
    said = str(error.details.get("stderr", ""))
    told = _ERRNO.findall(said)
    numbers = {*map(int, told), error.details.get("exit_code")}
    if any(text in said for text in _NOT_REACHED) or numbers & {110, 111, 113}:
        return Unavailable(
            f"pool {pool} of Ceph cannot be reached, or does not know the user and the key: {said}", pool=pool, ref=ref
        )
    if 28 in numbers or 122 in numbers:
        return NoSpace(f"pool {pool} of Ceph is full: {said}; free space or use another pool", pool=pool, said=said)
    if 2 in numbers:
        return NotFound(f"pool {pool} of Ceph does not have {ref}: {said}", pool=pool, ref=ref)
    if 17 in numbers:
        return AlreadyExists(f"{ref} exists already in pool {pool} of Ceph", pool=pool, ref=ref)
    if 13 in numbers or "Operation not permitted" in said:
        return AccessDenied(f"the user may not do that in pool {pool} of Ceph: {said}", pool=pool, ref=ref)
    if 16 in numbers or 30 in numbers or "watchers" in said:
        return Unavailable(f"{ref} is in use in pool {pool} of Ceph: {said}; try again later", pool=pool, ref=ref)
    return error
