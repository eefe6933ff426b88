"""A store that is LUNs behind one iSCSI portal, a volume each, as managed storages do it. qemu is the initiator (libiscsi): the
host logs in nowhere, and has no devices for them.

The CHAP secret goes to qemu's tools in a file that only this process's memory has: it is in no argv, in no environment and on
no disk, and is gone with the process.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from stores.backends.directory import expect_version
from stores.backends.iscsi_place import IscsiPlace, lun_of
from stores.contract import Kind, NetworkDisk, NetworkImage, ObjectInfo
from stores.errors import AccessDenied, NotFound, StorageError, Unavailable
from stores.given import GivenDisks, GivenSide
from stores.tools.in_memory import in_memory
from stores.tools.process import ToolFailed, ToolRunner, ToolTimeout

_SAID: tuple[tuple[str, type[StorageError], str], ...] = (
    ("Authentication failure", AccessDenied, "check the CHAP user and secret of the pool"),
    ("Authorization failure", AccessDenied, "allow this initiator at the storage"),
    ("Target not found", NotFound, "check the name of the target"),
    ("Target removed", NotFound, "check the name of the target"),
    ("LOGICAL_UNIT_NOT_SUPPORTED", NotFound, "check the number of the LUN"),
    ("RESERVATION CONFLICT", Unavailable, "another initiator has reserved it; try again when that is done"),
    ("Failed to log in", Unavailable, "the storage is not ready for logins"),
    ("iscsi_service", Unavailable, "check that the portal can be reached"),
    ("timed out", Unavailable, "check that the portal can be reached"),
    ("Failed to connect", Unavailable, "check that the portal can be reached"),
)
"""What libiscsi says of what went wrong, in the order in which it counts."""


class IscsiStore(GivenDisks):
    kind = Kind.ISCSI_LUN
    writes = frozenset({kind})

    def __init__(
        self,
        place: IscsiPlace,
        runner: ToolRunner,
        *,
        id: str,  # noqa: A002 - the contract's word
        timeout_s: float,
    ) -> None:
        """`timeout_s`: how long the storage may be silent."""
        self.id = id
        self._place = place
        self._runner = runner
        self._timeout_s = timeout_s

    def check(self, ref: str) -> None:
        lun_of(ref)

    def network(self, ref: str) -> NetworkDisk:
        lun = lun_of(ref)
        return NetworkDisk("iscsi", f"{lun.target}/{lun.number}", (self._place.host,))

    async def stat(self, ref: str) -> ObjectInfo:
        """The version is the size: a LUN says nothing else of what is in it."""
        self.check(ref)
        with self._secret() as (name, objects):
            node = {"driver": "raw", "file": self._options(ref, name)}
            arguments = [part for each in objects for part in ("--object", each)]
            size = await self._size(ref, ["qemu-img", "info", "--output=json", *arguments, f"json:{json.dumps(node)}"])
        if not size:
            raise NotFound(f"{ref} at {self._place.portal} is no disk; LUN 0 is often the storage itself", ref=ref)
        return ObjectInfo(ref, size, version=f"lun-{size}")

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[NetworkImage]:
        self.check(info.ref)
        if kind is not self.kind:
            raise self._unsupported(f"reading as {kind}")
        found = await self.stat(info.ref)
        expect_version(info, found)
        with self._secret() as (name, objects):
            storage = GivenSide(found.ref, found.size or 0)
            network = replace(self.network(info.ref), user=self._place.user, secret=self._place.secret)
            yield NetworkImage(self._options(info.ref, name), found, kind, objects, storage, network)

    def _options(self, ref: str, secret: str | None) -> dict[str, object]:
        """Of qemu's driver `iscsi` (qemu-block-drivers(7))."""
        lun = lun_of(ref)
        options: dict[str, object] = {
            "driver": "iscsi",
            "transport": "tcp",
            "portal": self._place.portal,
            "target": lun.target,
            "lun": lun.number,
            "timeout": max(1, int(self._timeout_s)),
        }
        if secret is not None:
            options |= {"user": self._place.user, "password-secret": secret}
        return options

    @contextmanager
    def _secret(self) -> Iterator[tuple[str | None, tuple[str, ...]]]:
        """The name that qemu knows the secret by, and the object that has it, until the context ends."""
        if self._place.secret is None:
            yield None, ()
            return
        name = f"chap{secrets.token_hex(6)}"
        with in_memory(self._place.secret) as path:
            yield name, (f"secret,id={name},file={path}",)

    async def _size(self, ref: str, argv: list[str]) -> int:
        try:
            result = await self._runner.run(argv, deadline_s=4 * self._timeout_s)
        except ToolFailed as error:
            raise explained(error, ref, self._place.portal) from error
        except ToolTimeout as error:
            raise Unavailable(f"{ref} at {self._place.portal} does not answer: {error.message}", ref=ref) from error
        return int(json.loads(result.stdout)["virtual-size"])


def explained(error: ToolFailed, ref: str, portal: str) -> StorageError:
    """What libiscsi said, as one of our errors where an operator can tell more from that."""
    said = str(error.details.get("stderr", ""))
    _, _, reason = said.rpartition("iSCSI: ")
    for words, kind, advice in _SAID:
        if words in reason:
            return kind(
                f"the portal {portal} has no {ref} for us: {reason}; {advice}", ref=ref, portal=portal, said=reason
            )
    return error
