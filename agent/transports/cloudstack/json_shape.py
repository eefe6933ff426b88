"""How gson shows a model as JSON, and back: what differs between CloudStack's wire and plain JSON.

- A field whose type in Java is an interface (`DataTO`, `DataStoreTO`) holds an object of one key, the name of the class. In our
  models such a field is a union. The same object in a field of a concrete type is not wrapped.
- `byte[]` is an array of signed numbers. Only passphrases are such arrays.
- null is the same as absent, and so is a constant that an enumeration here does not have.

Everything is derived once from the annotations of a model and then applied to plain dicts, so that pydantic validates a
command in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from types import UnionType
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel

from agent.transports.cloudstack.models_objects import SnapshotMade, TemplateMade, VolumeMade
from stores.secret import Secret
from stores.to import (
    S3TO,
    ImageStoreTO,
    NfsTO,
    PrimaryDataStoreTO,
    SnapshotObjectTO,
    SwiftTO,
    TemplateObjectTO,
    VolumeObjectTO,
)

_STORAGE_TO = "org.apache.cloudstack.storage.to"
_API_TO = "com.cloud.agent.api.to"


@dataclass(frozen=True, slots=True)
class _Member:
    """One of the classes that an interface's field may hold. In our models the field `tag` says which it is."""

    java: str
    model: type[BaseModel]
    tag: str

    @property
    def tag_value(self) -> str:
        return str(self.model.model_fields[self.tag].default)


_MEMBERS = (
    _Member(f"{_STORAGE_TO}.VolumeObjectTO", VolumeObjectTO, "type"),
    _Member(f"{_STORAGE_TO}.TemplateObjectTO", TemplateObjectTO, "type"),
    _Member(f"{_STORAGE_TO}.SnapshotObjectTO", SnapshotObjectTO, "type"),
    _Member(f"{_STORAGE_TO}.VolumeObjectTO", VolumeMade, "type"),
    _Member(f"{_STORAGE_TO}.TemplateObjectTO", TemplateMade, "type"),
    _Member(f"{_STORAGE_TO}.SnapshotObjectTO", SnapshotMade, "type"),
    _Member(f"{_API_TO}.S3TO", S3TO, "storeType"),
    _Member(f"{_API_TO}.NfsTO", NfsTO, "storeType"),
    _Member(f"{_API_TO}.SwiftTO", SwiftTO, "storeType"),
    _Member(f"{_STORAGE_TO}.PrimaryDataStoreTO", PrimaryDataStoreTO, "storeType"),
    _Member(f"{_STORAGE_TO}.ImageStoreTO", ImageStoreTO, "storeType"),
)
_BY_MODEL = {member.model: member for member in _MEMBERS}
_STORED = frozenset({VolumeObjectTO, TemplateObjectTO, SnapshotObjectTO})
_BYTE_ARRAYS = frozenset({"passphrase"})

Tree: TypeAlias = dict[str, Any]
"""A JSON object as it was parsed."""
_Convert: TypeAlias = Callable[[Any], Any]


class WrongShape(ValueError):
    """The JSON is not what the class's fields look like. The text never quotes a value."""


# ------------------------------------------------------------------------------------------------------ annotations


def _parts(annotation: Any) -> Iterator[Any]:
    """The types that a value may have: unions and annotations taken apart, without None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    elif annotation is not type(None):
        yield annotation


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]


# ---------------------------------------------------------------------------------------------------------- reading


def read(model: type[BaseModel], tree: Tree) -> Tree:
    """What `model.model_validate` takes, of the JSON object that the wire has for it. `WrongShape`."""
    values = {key: value for key, value in tree.items() if value is not None}
    for key, convert in _converters(model):
        if key in values:
            converted = convert(values[key])
            if converted is None:
                del values[key]
            else:
                values[key] = converted
    return values


@cache
def _converters(model: type[BaseModel]) -> tuple[tuple[str, _Convert], ...]:
    """The wire names of those fields that are not validated as they come."""
    found = []
    for name, info in model.model_fields.items():
        convert = _converter(name, info.annotation)
        if convert is not None:
            found.append((info.alias or name, convert))
    return tuple(found)


def _converter(name: str, annotation: Any) -> _Convert | None:
    if name in _BYTE_ARRAYS:
        return _passphrase
    parts, models = list(_parts(annotation)), _models(annotation)
    if len(models) > 1:
        return _Unwrap(tuple(_BY_MODEL[model] for model in models))
    if models:
        return _Plain(models[0])
    if len(parts) == 1:
        container, within = get_origin(parts[0]), get_args(parts[0])
        if container is tuple and (held := _models(within[0])):
            return _Each(_Plain(held[0]))
        if container is dict and (held := _models(within[1])):
            return _EachValue(_Plain(held[0]))
        if isinstance(parts[0], type) and issubclass(parts[0], StrEnum):
            return _Constant(parts[0])
    return _without_nulls if any(get_origin(part) is dict for part in parts) else None


@dataclass(frozen=True, slots=True)
class _Unwrap:
    """`{"the.Class": {...}}`; of several keys only the first counts, as for CloudStack's own adapter."""

    members: tuple[_Member, ...]

    def __call__(self, value: Any) -> Tree:
        if not isinstance(value, dict) or not value:
            raise WrongShape("an object of one key, the name of a class, was expected")
        java, body = next(iter(value.items()))
        for member in self.members:
            if member.java == java:
                return _tagged(member, body)
        raise WrongShape(f"the class {java[:200]} is not one of those that can be here")


@dataclass(frozen=True, slots=True)
class _Plain:
    model: type[BaseModel]

    def __call__(self, value: Any) -> Tree | None:
        member = _BY_MODEL.get(self.model)
        if member is None:
            return read(self.model, _object(value))
        if self.model in _STORED and not any(_object(value).get(key) for key in ("dataStore", "imageDataStore")):
            return None  # a snapshot outlives its volume, for instance, which then lies nowhere
        return _tagged(member, value)


@dataclass(frozen=True, slots=True)
class _Each:
    convert: _Convert

    def __call__(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise WrongShape("an array was expected")
        return [self.convert(one) for one in value]


@dataclass(frozen=True, slots=True)
class _EachValue:
    convert: _Convert

    def __call__(self, value: Any) -> Tree:
        return {key: self.convert(one) for key, one in _object(value).items()}


@dataclass(frozen=True, slots=True)
class _Constant:
    enumeration: type[StrEnum]

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, str):
            raise WrongShape("the name of a constant was expected")
        known = self.enumeration._value2member_map_
        return known.get(value) or known.get(value.upper())


def _tagged(member: _Member, body: Any) -> Tree:
    values = read(member.model, _object(body))
    values[member.tag] = member.tag_value
    return values


def _object(value: Any) -> Tree:
    if not isinstance(value, dict):
        raise WrongShape("an object was expected")
    return value


def _without_nulls(value: Any) -> Tree:
    return {key: one for key, one in _object(value).items() if one is not None}


def _passphrase(value: Any) -> Secret:
    if not isinstance(value, list) or not all(type(one) is int and -128 <= one < 256 for one in value):
        raise WrongShape("an array of signed bytes was expected")
    try:
        return Secret(bytes(one % 256 for one in value).decode())
    except UnicodeDecodeError:
        raise WrongShape("a passphrase needs to be text in UTF-8") from None


# ---------------------------------------------------------------------------------------------------------- writing


def write(model: BaseModel) -> Tree:
    """The JSON object that the wire has for a model. Secrets are in clear: this leaves for the peer and nowhere else."""
    out: Tree = {}
    for name, key, wrapped in _written(type(model)):
        value = getattr(model, name)
        if value is None:
            continue
        if wrapped:
            out[key] = {_BY_MODEL[type(value)].java: write(value)}
        elif name in _BYTE_ARRAYS:
            out[key] = [byte - 256 if byte > 127 else byte for byte in value.reveal().encode()]
        else:
            out[key] = _plain(value)
    return out


@cache
def _written(model: type[BaseModel]) -> tuple[tuple[str, str, bool], ...]:
    """Name, wire name, and whether the value is wrapped, of every field that is on the wire."""
    member = _BY_MODEL.get(model)
    return tuple(
        (name, info.alias or name, len(_models(info.annotation)) > 1)
        for name, info in model.model_fields.items()
        if member is None or name != member.tag
    )


def _plain(value: Any) -> Any:
    match value:
        case str() | int() | float():
            return value
        case Secret():
            return value.reveal()
        case BaseModel():
            return write(value)
        case dict():
            return {key: _plain(one) for key, one in value.items()}
        case _:
            return [_plain(one) for one in value]
