"""The pool's one database: records by reference, each with the generations of its making and its last change.

Events are read off the generations, as XAPI does it: several changes between two looks are one event, and what came and
went between them is none.
"""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.doubles.xapi.errors import Failure
from tests.doubles.xapi.schema import FIELDS, NULL, OBJECTS_OF, PARENTS

Record = dict[str, Any]


@dataclass
class _Row:
    record: Record
    created: int
    modified: int


@dataclass(frozen=True)
class _Gone:
    name: str
    ref: str
    created: int
    deleted: int


class Database:
    """Every change goes through `add`, `change` and `remove`; whoever waits for `changed` is woken."""

    def __init__(self) -> None:
        self.generation = 1000
        self._tables: dict[str, dict[str, _Row]] = {name: {} for name in FIELDS}
        self._gone: list[_Gone] = []
        self._changed = asyncio.Event()

    # ------------------------------------------------------------------------------------------------- records

    def add(self, name: str, **values: Any) -> str:
        """A new record's reference. What is not said has its default."""
        fields = FIELDS[name]
        assert values.keys() <= fields.keys(), (name, values.keys() - fields.keys())
        record: Record = copy.deepcopy(fields)
        record.update(copy.deepcopy(values))
        record["uuid"] = record["uuid"] or str(uuid.uuid4())
        ref = f"OpaqueRef:{uuid.uuid4()}"
        self._tables[name][ref] = _Row(record, self._next(), self.generation)
        for field, (parent, children) in self._links(name):
            self._link(parent, record[field], children, ref, present=True)
        return ref

    def change(self, name: str, ref: str, **values: Any) -> None:
        """Nothing happens, and no event comes of it, where the values are what they were."""
        row = self._row(name, ref)
        if all(row.record[field] == value for field, value in values.items()):
            return
        for field, (parent, children) in self._links(name):
            if field in values:
                self._link(parent, row.record[field], children, ref, present=False)
                self._link(parent, values[field], children, ref, present=True)
        row.record.update(copy.deepcopy(values))
        row.modified = self._next()

    def remove(self, name: str, ref: str) -> None:
        row = self._row(name, ref)
        for field, (parent, children) in self._links(name):
            self._link(parent, row.record[field], children, ref, present=False)
        del self._tables[name][ref]
        self._gone.append(_Gone(name, ref, row.created, self._next()))

    def get(self, name: str, ref: str) -> Record:
        """A copy."""
        return copy.deepcopy(self._row(name, ref).record)

    def field(self, name: str, ref: str, field: str) -> Any:
        return copy.deepcopy(self._row(name, ref).record[field])

    def has(self, name: str, ref: str) -> bool:
        return ref in self._tables[name]

    def refs(self, name: str) -> list[str]:
        return list(self._tables[name])

    def find(self, name: str, **values: Any) -> list[str]:
        """References of the records whose fields have these values."""
        return [
            ref
            for ref, row in self._tables[name].items()
            if all(row.record[field] == value for field, value in values.items())
        ]

    def by_uuid(self, name: str, number: str) -> str:
        found = self.find(name, uuid=number)
        if not found:
            raise Failure("UUID_INVALID", name, number)
        return found[0]

    def _row(self, name: str, ref: str) -> _Row:
        row = self._tables[name].get(ref)
        if row is None:
            raise Failure("HANDLE_INVALID", name, ref)
        return row

    def _links(self, name: str) -> Iterator[tuple[str, tuple[str, str]]]:
        return ((field, target) for (child, field), target in PARENTS.items() if child == name)

    def _link(self, parent: str, target: str, children: str, ref: str, *, present: bool) -> None:
        row = self._tables[parent].get(target)
        if target == NULL or row is None:
            return
        listed: list[str] = row.record[children]
        if present:
            listed.append(ref)
        else:
            listed.remove(ref)
        row.modified = self._next()

    # -------------------------------------------------------------------------------------------------- events

    def _next(self) -> int:
        self.generation += 1
        self._changed.set()
        self._changed = asyncio.Event()
        return self.generation

    def restart(self, generation: int) -> None:
        """Count from another number, as a restarted XAPI may: tokens from before are worth nothing, and look like others."""
        self.generation = generation
        self._gone.clear()
        for table in self._tables.values():
            for row in table.values():
                row.created = row.modified = generation
        self._next()

    async def events_from(self, classes: list[str], token: str, timeout: float) -> Record:
        """event.from: waits until something of `classes` has changed since `token`, or for `timeout` seconds."""
        since, wanted = _token(token), [_subscription(text) for text in classes]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            changed = self._changed
            events, last = self._since(wanted, since)
            left = deadline - loop.time()
            if events or left <= 0:
                counts = {name.lower(): len(table) for name, table in self._tables.items()}
                return {"events": events, "valid_ref_counts": counts, "token": f"{last:020d},{0:020d}"}
            try:
                await asyncio.wait_for(changed.wait(), left)
            except TimeoutError:
                continue

    def _since(self, wanted: list[tuple[str, str]], since: int) -> tuple[list[Record], int]:
        found: list[tuple[int, Record]] = []
        last = since
        for name, table in self._tables.items():
            for ref, row in table.items():
                if row.modified > since and _matches(wanted, name, ref):
                    kind = "add" if row.created > since else "mod"
                    found.append((row.modified, _event(row.modified, name, kind, ref, copy.deepcopy(row.record))))
        for gone in self._gone:
            if gone.deleted > since and _matches(wanted, gone.name, gone.ref):
                last = max(last, gone.deleted)
                if gone.created <= since:
                    found.append((gone.deleted, _event(gone.deleted, gone.name, "del", gone.ref, None)))
        found.sort(key=lambda pair: pair[0])
        return [event for _, event in found], max([last, *(at for at, _ in found)])


def _event(at: int, name: str, operation: str, ref: str, snapshot: Record | None) -> Record:
    event = {"id": str(at), "timestamp": "0.0", "class": name.lower(), "operation": operation, "ref": ref}
    return event if snapshot is None else {**event, "snapshot": snapshot}


def _token(text: str) -> int:
    if not text:
        return 0
    try:
        first, second = text.split(",")
        int(second)
        return int(first)
    except ValueError:
        raise Failure("EVENT_FROM_TOKEN_PARSE_FAILURE", text) from None


def _subscription(text: str) -> tuple[str, str]:
    name, _, ref = text.partition("/")
    if name != "*" and name.lower() not in OBJECTS_OF:
        raise Failure("EVENT_SUBSCRIPTION_PARSE_FAILURE", text)
    return name.lower(), ref


def _matches(wanted: list[tuple[str, str]], name: str, ref: str) -> bool:
    return any(kind in ("*", name.lower()) and (not one or one == ref) for kind, one in wanted)
