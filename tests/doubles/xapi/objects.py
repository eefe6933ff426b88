"""The calls that every class has: getters, setters, and members of maps and sets."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from tests.doubles.xapi.database import Database
from tests.doubles.xapi.errors import Failure
from tests.doubles.xapi.queries import parsed
from tests.doubles.xapi.schema import FIELDS, NO_SETTER
from tests.doubles.xapi.world import Caller

Method = Callable[..., Coroutine[Any, Any, Any]]


class Objects:
    def __init__(self, db: Database, *, replacing: bool = False) -> None:
        """`replacing`: members of maps are replaced where they should be refused."""
        self._db = db
        self._replacing = replacing

    def find(self, kind: str, method: str) -> Method | None:
        """What does `kind.method`, or None."""
        if kind not in FIELDS:
            return None
        whole: dict[str, Method] = {
            "get_all": self._all,
            "get_all_records": self._all_records,
            "get_all_records_where": self._where,
            "get_record": self._record,
            "get_by_uuid": self._by_uuid,
        }
        if "name_label" in FIELDS[kind]:
            whole["get_by_name_label"] = self._by_name
        found = whole.get(method) or self._of_field(kind, method)
        return None if found is None else _named(found, kind)

    def methods(self) -> list[str]:
        names = []
        for kind, fields in FIELDS.items():
            names += [f"{kind}.{name}" for name in ("get_all", "get_record", "get_all_records", "get_by_uuid")]
            for field in fields:
                prefixes = ("get_", "set_", "add_to_", "remove_from_", "add_", "remove_")
                names += [f"{kind}.{prefix}{field}" for prefix in prefixes if self.find(kind, prefix + field)]
        return names

    def _of_field(self, kind: str, method: str) -> Method | None:
        for prefix, make, wanted in (
            ("get_", self._get, object),
            ("set_", self._set, object),
            ("add_to_", self._add_to_map, dict),
            ("remove_from_", self._remove_from_map, dict),
            ("add_", self._add_to_set, list),
            ("remove_", self._remove_from_set, list),
        ):
            field = method.removeprefix(prefix)
            if field == method or field not in FIELDS[kind] or not isinstance(FIELDS[kind][field], wanted):
                continue
            if prefix == "get_" or field not in NO_SETTER:
                return _on_field(make, field)
        return None

    async def _all(self, kind: str) -> list[str]:
        return self._db.refs(kind)

    async def _all_records(self, kind: str) -> dict[str, Any]:
        return {ref: self._db.get(kind, ref) for ref in self._db.refs(kind)}

    async def _where(self, kind: str, expression: str) -> dict[str, Any]:
        holds = parsed(expression)
        records = await self._all_records(kind)
        return {ref: record for ref, record in records.items() if holds(record)}

    async def _record(self, kind: str, ref: str) -> dict[str, Any]:
        return self._db.get(kind, ref)

    async def _by_uuid(self, kind: str, number: str) -> str:
        return self._db.by_uuid(kind, number)

    async def _by_name(self, kind: str, name: str) -> list[str]:
        return self._db.find(kind, name_label=name)

    async def _get(self, kind: str, field: str, ref: str) -> Any:
        return self._db.field(kind, ref, field)

    async def _set(self, kind: str, field: str, ref: str, value: Any) -> str:
        default = FIELDS[kind][field]
        if type(default) is int:
            value = int(value)
        elif not isinstance(value, type(default)) and not isinstance(default, str):
            raise Failure("FIELD_TYPE_ERROR", field)
        self._db.change(kind, ref, **{field: value})
        return ""

    async def _add_to_map(self, kind: str, field: str, ref: str, key: str, value: str) -> str:
        held = self._db.field(kind, ref, field)
        if key in held and not self._replacing:
            raise Failure("MAP_DUPLICATE_KEY", kind, field, ref, key)
        self._db.change(kind, ref, **{field: {**held, key: value}})
        return ""

    async def _remove_from_map(self, kind: str, field: str, ref: str, key: str) -> str:
        held = self._db.field(kind, ref, field)
        held.pop(key, None)
        self._db.change(kind, ref, **{field: held})
        return ""

    async def _add_to_set(self, kind: str, field: str, ref: str, value: str) -> str:
        held = self._db.field(kind, ref, field)
        self._db.change(kind, ref, **{field: [*held, *([] if value in held else [value])]})
        return ""

    async def _remove_from_set(self, kind: str, field: str, ref: str, value: str) -> str:
        held = self._db.field(kind, ref, field)
        self._db.change(kind, ref, **{field: [one for one in held if one != value]})
        return ""


def _named(method: Method, kind: str) -> Method:
    """With the caller first, as the classes' own calls take it."""
    bound = functools.partial(method, kind)
    names = list(inspect.signature(bound).parameters.values())

    async def call(caller: Caller, *params: Any) -> Any:
        return await bound(*params)

    first = inspect.Parameter("caller", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    call.__signature__ = inspect.Signature([first, *names])  # type: ignore[attr-defined]
    return call


def _on_field(method: Method, field: str) -> Method:
    async def call(kind: str, *params: Any) -> Any:
        return await method(kind, field, *params)

    kinds = list(inspect.signature(method).parameters.values())
    call.__signature__ = inspect.Signature([kinds[0], *kinds[2:]])  # type: ignore[attr-defined]
    return call
