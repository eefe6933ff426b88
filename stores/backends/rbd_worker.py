"""Ceph's own Python modules at work: a process of the host's Python, since they are in no other.

    /usr/bin/python3 -I rbd_worker.py DESCRIPTOR IDLE_S CONF USER POOL

The socket DESCRIPTOR brings one call a line, as JSON (`[name, {argument: value}]`), and takes one line for each:
`{"value": ...}`, or `{"said": ..., "errno": ...}`, errno null where Ceph gives none. The first line, before any call, is for
having connected. It ends with the socket, or when nobody asks for IDLE_S seconds.

Imports nothing of ours. What its calls promise is said where they are used: `rbd_image`, `rbd_notes`.
"""

from __future__ import annotations

import base64
import json
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rados
import rbd

_PAGE = 1000
"""Keys at once."""

_USERS = 0  # librbd.h: RBD_SNAP_NAMESPACE_TYPE_USER


class Pool:
    """The calls. Each opens what it needs, and closes it: a worker that waits holds no image."""

    def __init__(self, cluster: Any, name: str) -> None:
        self._cluster = cluster
        self._name = name

    # ------------------------------------------------------------------------------------------------------- images

    def info(self, image: str) -> dict[str, Any]:
        with self._opened(image) as found:
            return {"size": found.size(), "id": found.id()}

    def sizes(self) -> dict[str, int]:
        """By name, without images that go meanwhile."""
        sizes = {}
        with self._pool() as pool:
            for name in rbd.RBD().list(pool):
                try:
                    with rbd.Image(pool, name, read_only=True) as image:
                        sizes[name] = image.size()
                except rbd.ImageNotFound:
                    continue
        return sizes

    def create(self, image: str, size: int) -> None:
        with self._pool() as pool:
            rbd.RBD().create(pool, image, size, old_format=False)

    def clone(self, image: str, tag: str, to: str) -> None:
        """Of a snapshot, which is protected by this."""
        with self._pool() as pool:
            with rbd.Image(pool, image) as found:
                if not found.is_protected_snap(tag):
                    found.protect_snap(tag)
            rbd.RBD().clone(pool, image, tag, pool, to)

    def rename(self, image: str, to: str) -> dict[str, Any]:
        with self._pool() as pool:
            rbd.RBD().rename(pool, image, to)
        return self.info(to)

    def remove(self, image: str) -> None:
        with self._pool() as pool:
            rbd.RBD().remove(pool, image)

    def resize(self, image: str, size: int) -> None:
        with self._opened(image, write=True) as found:
            found.resize(size, allow_shrink=True)

    def watchers(self, image: str) -> list[str]:
        """Addresses of those that have it open for writing."""
        with self._opened(image) as found:
            return [each["addr"] for each in found.watchers_list()]

    def used(self, image: str) -> int:
        """As `rbd du` counts it: whole objects, of the image and of its snapshots."""
        used, since = 0, None
        for tag in [*self.tags(image), None]:
            with self._opened(image, tag) as found:
                parts = _changed(found, since, include_parent=False, whole_object=True)
                used += sum(length for _, length, there in parts if there)
            since = tag
        return used

    # ---------------------------------------------------------------------------------------------------- snapshots

    def tags(self, image: str) -> list[str]:
        """The oldest first."""
        with self._opened(image) as found:
            return [each["name"] for each in found.list_snaps() if each.get("namespace", _USERS) == _USERS]

    def freeze(self, image: str, tag: str) -> None:
        with self._opened(image, write=True) as found:
            found.create_snap(tag)

    def unshare(self, image: str, tag: str) -> None:
        """Images that share blocks with the snapshot get them for themselves."""
        with self._opened(image, write=True) as found:
            if self._has(found, tag) and found.is_protected_snap(tag):
                self._flatten_children(image, tag)
                found.unprotect_snap(tag)

    def forget(self, image: str, tag: str) -> None:
        with self._opened(image, write=True) as found:
            if self._has(found, tag):
                found.remove_snap(tag)

    def rewind(self, image: str, tag: str) -> None:
        with self._opened(image, write=True) as found:
            found.rollback_to_snap(tag)

    def changed(self, image: str, since: str, until: str | None) -> list[tuple[int, int]]:
        with self._opened(image, until) as found:
            return [(offset, length) for offset, length, _ in _changed(found, since)]

    def is_changed(self, image: str, since: str) -> bool:
        with self._opened(image) as found:
            return bool(_changed(found, since, whole_object=True))

    def _has(self, image: Any, tag: str) -> bool:
        return any(each["name"] == tag for each in image.list_snaps())

    def _flatten_children(self, image: str, tag: str) -> None:
        with self._opened(image, tag) as found:
            children = list(found.list_children())
        for pool, name in children:
            with self._pool(pool) as theirs, rbd.Image(theirs, name) as child:
                child.flatten()

    # -------------------------------------------------------------------------------------------------------- notes

    def keys(self, note: str) -> list[str]:
        found: list[str] = []
        with self._pool() as pool:
            while True:
                with rados.ReadOpCtx() as reading:
                    keys, _ = pool.get_omap_keys(reading, found[-1] if found else "", _PAGE)
                    try:
                        pool.operate_read_op(reading, note)
                    except rados.ObjectNotFound:
                        return found
                    page = [key for key, _ in keys]
                found += page
                if len(page) < _PAGE:
                    return found

    def read(self, note: str, key: str) -> str | None:
        with self._pool() as pool, rados.ReadOpCtx() as reading:
            values, _ = pool.get_omap_vals_by_keys(reading, (key,))
            try:
                pool.operate_read_op(reading, note)
            except rados.ObjectNotFound:
                return None
            # An empty value comes as None.
            return next((base64.b64encode(value or b"").decode() for _, value in values), None)

    def put(self, note: str, key: str, value: str) -> None:
        with self._pool() as pool, rados.WriteOpCtx() as writing:
            pool.set_omap(writing, (key,), (base64.b64decode(value),))
            pool.operate_write_op(writing, note)

    def erase(self, note: str, key: str) -> None:
        """The object goes with its last key."""
        keys = self.keys(note)
        if key not in keys:
            return
        with self._pool() as pool:
            if keys == [key]:
                pool.remove_object(note)
                return
            with rados.WriteOpCtx() as writing:
                pool.remove_omap_keys(writing, (key,))
                pool.operate_write_op(writing, note)

    # ------------------------------------------------------------------------------------------------------ cluster

    def statistics(self) -> dict[str, Any] | None:
        pools = self._told(prefix="df", format="json")["pools"]
        return next((pool["stats"] for pool in pools if pool["name"] == self._name), None)

    def shut_out(self, address: str) -> None:
        self._told(prefix="osd blocklist", blocklistop="add", addr=address, expire=300.0)

    def _told(self, **command: object) -> Any:
        failed, answer, said = self._cluster.mon_command(json.dumps(command), b"")
        if failed:
            raise rados.Error(said, errno=-failed)
        return json.loads(answer) if answer.strip() else None

    @contextmanager
    def _pool(self, name: str | None = None) -> Iterator[Any]:
        pool = self._cluster.open_ioctx(name or self._name)
        try:
            yield pool
        finally:
            pool.close()

    @contextmanager
    def _opened(self, image: str, tag: str | None = None, *, write: bool = False) -> Iterator[Any]:
        with self._pool() as pool, rbd.Image(pool, image, snapshot=tag, read_only=not write) as found:
            yield found


def _changed(image: Any, since: str | None, **how: bool) -> list[tuple[int, int, bool]]:
    """Offset, length, and whether there is anything now; in order."""
    found: list[tuple[int, int, bool]] = []
    image.diff_iterate(0, image.size(), since, lambda *part: found.append(part), **how)
    return found


def _answer(call: Callable[[], object]) -> bytes:
    try:
        told: dict[str, object] = {"value": call()}
    except (rados.Error, rbd.Error) as error:
        number = getattr(error, "errno", None)
        told = {"said": str(error), "errno": None if number is None else abs(number)}
    return json.dumps(told).encode() + b"\n"


def main() -> None:
    descriptor, idle_s, conf, user, name = sys.argv[1:]
    with socket.socket(fileno=int(descriptor)) as asked:
        cluster = rados.Rados(conffile=conf, rados_id=user)
        connected = _answer(cluster.connect)
        asked.sendall(connected)
        if b'"said"' in connected:
            return
        pool = Pool(cluster, name)
        asked.settimeout(float(idle_s))
        with asked.makefile("rb") as lines:
            try:
                for line in lines:
                    call, arguments = json.loads(line)
                    asked.sendall(_answer(lambda: getattr(pool, call)(**arguments)))  # noqa: B023 - called at once
            except TimeoutError:
                return


if __name__ == "__main__":
    main()
