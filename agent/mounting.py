"""The two ways to mount: by the tools themselves, which takes root, and by asking `storage-agent-mounter` for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from stores.errors import AccessDenied, NotFound, PolicyRefused, StorageError, StoreError
from stores.mounts.export import FORCED, Export
from stores.mounts.mount import MountFailed, MountHangs, MountInUse
from stores.tools.process import ToolFailed, ToolRunner, ToolTimeout

TOOL_S = 60.0
"""A server that is there mounts in a second; one that is not makes mount.nfs try for two minutes."""
ANSWER_S = TOOL_S + 15
"""With what stopping the tool takes, and a start of the mounter."""
_ANSWER_LIMIT = 64 * 1024

TOLD: Mapping[str, type[StoreError]] = {
    kind.__name__: kind for kind in (AccessDenied, NotFound, PolicyRefused, MountInUse, MountHangs, MountFailed)
}
"""What the mounter may say that went wrong."""


class ToolMounter:
    """By mount.nfs(8) and umount(8)."""

    def __init__(self, tools: ToolRunner) -> None:
        self._tools = tools

    async def mount(self, export: Export, at: Path) -> None:
        try:
            await asyncio.to_thread(at.mkdir, 0o755, exist_ok=True)
        except OSError as error:
            raise MountFailed(f"the directory {at} cannot be made: {error.strerror}", directory=str(at)) from error
        options = ",".join((*FORCED, *export.options))
        try:
            await self._run(["mount.nfs", export.source, str(at), "-o", options], export.source, at)
        except StorageError:
            await _remove_empty(at)
            raise

    async def unmount(self, at: Path) -> None:
        await self._run(["umount", "--no-canonicalize", str(at)], None, at)
        await _remove_empty(at)

    async def _run(self, argv: list[str], source: str | None, at: Path) -> None:
        try:
            await self._tools.run(argv, deadline_s=TOOL_S)
        except ToolFailed as error:
            raise translated(str(error.details["stderr"]), source, at) from error
        except ToolTimeout as error:
            raise MountHangs(
                f"{argv[0]} for {at} was stopped after {TOOL_S:g} s; see whether its server is up",
                directory=str(at),
                export=source,
            ) from error


def translated(said: str, source: str | None, at: Path) -> StoreError:
    """What the tools wrote, in our terms. nfs-utils: utils/mount/error.c; util-linux: libmount/src/context_umount.c."""
    kind: type[StoreError] = MountFailed
    if "busy" in said:
        kind = MountInUse
    elif "access denied" in said or "Permission denied" in said or "not permitted" in said:
        kind = AccessDenied
    elif "No such file or directory" in said:
        kind = NotFound
    what = f"{source} could not be mounted at {at}" if source else f"{at} could not be unmounted"
    return kind(f"{what}: {said.strip()}", directory=str(at), export=source)


async def _remove_empty(at: Path) -> None:
    with suppress(OSError):
        await asyncio.to_thread(at.rmdir)


class AskedMounter:
    """By the mounter behind the socket `path`: one connection, one line there, one line back."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def mount(self, export: Export, at: Path) -> None:
        wanted = {"host": export.host, "path": export.path, "options": list(export.options)}
        await self._ask({"mount": wanted, "at": str(at)}, at)

    async def unmount(self, at: Path) -> None:
        await self._ask({"unmount": str(at)}, at)

    async def _ask(self, request: Mapping[str, object], at: Path) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await self._answer(json.dumps(request).encode() + b"\n")
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise MountFailed(
                f"the mounter at {self._path} gives no answer ({error}); is storage-agent-mounter.socket started?",
                directory=str(at),
            ) from error
        if "error" in answer:
            kind = TOLD.get(str(answer["error"]), MountFailed)
            raise kind(str(answer.get("message")), directory=str(at))

    async def _answer(self, line: bytes) -> Mapping[str, object]:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=_ANSWER_LIMIT)
        try:
            writer.write(line)
            await writer.drain()
            answer = json.loads(await reader.readuntil(b"\n"))
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        if not isinstance(answer, dict):
            raise ValueError("no object")
        return answer
