"""Commands about `ImageCache` stores that are only names: what is to be done in place of what they say. Pure.

A management server that knows no direct way between S3 and a hypervisor orders two copies. Into such a store nothing is copied
from S3, since the path tells where the bytes are; out of it they come from S3. What comes out of a pool is another matter: its
volume may change as soon as the server was answered, so it is copied when that is asked for, into an object of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from agent.commands import Answer
from agent.transports.cloudstack.commands_naming import Purpose, placed, purpose_of
from agent.transports.cloudstack.commands_stores import UNBOUNDED
from agent.transports.cloudstack.models import WireAnswer, WireCommand
from agent.transports.cloudstack.models_images import (
    ComputeChecksumCommand,
    DeleteSnapshotsDirCommand,
    SecStorageSetupAnswer,
    SecStorageSetupCommand,
)
from agent.transports.cloudstack.models_objects import Made, SnapshotMade, TemplateMade, VolumeMade
from agent.transports.cloudstack.models_pools import GetStorageStatsAnswer, GetStorageStatsCommand
from agent.transports.cloudstack.models_storage import CopyCmdAnswer, CopyCommand, DeleteCommand, RevertSnapshotCommand
from agent.transports.cloudstack.staging_file import Zone
from agent.transports.cloudstack.staging_paths import Kind, Staged, path_of, staged_of
from hypervisors.contract import OperationUnsupported
from stores.errors import InvalidReference, NotFound, ObjectChanged
from stores.to import S3TO, DataTO, SnapshotObjectTO

FOLDER = "staging"
"""Of a bucket: objects that were made for a path, and go with it."""


@dataclass(frozen=True, slots=True)
class Remember:
    """Nothing is copied: the object `key` of `store` is looked at, and gets a path."""

    command: CopyCommand
    store: S3TO
    key: str


@dataclass(frozen=True, slots=True)
class Instead:
    """The same command about the object in S3. `unless`: what has to be found there first, as it was when the path was made."""

    command: WireCommand
    unless: tuple[S3TO, Staged] | None = None


@dataclass(frozen=True, slots=True)
class Keep:
    """A copy out of a pool, into an object that is made for it."""

    command: CopyCommand


@dataclass(frozen=True, slots=True)
class Say:
    """Nothing is to be done."""

    answer: WireAnswer


Meaning: TypeAlias = Remember | Instead | Keep | Say


def meaning_of(command: WireCommand, zone: Zone) -> Meaning | None:
    """None for a command that is about no such store. `StorageError` for what cannot be done with one."""
    match command:
        case CopyCommand():
            return _copy(command, zone)
        case DeleteCommand() if zone.only_a_name(command.data.store):
            return _delete(command, zone)
        case RevertSnapshotCommand(data=SnapshotObjectTO() as data) if zone.only_a_name(data.store):
            return Instead(command.model_copy(update={"data": in_s3(data, zone)[0]}))
        case ComputeChecksumCommand() if zone.only_a_name(command.store):
            staged = _staged(command.templatePath, zone)
            return Instead(command.model_copy(update={"store": zone.store(staged.store), "templatePath": staged.key}))
        case SecStorageSetupCommand() if zone.only_a_name(command.store):
            return Say(SecStorageSetupAnswer(result=True, details="nothing is kept there; S3 is read in its place"))
        case GetStorageStatsCommand(store=store) if store is not None and zone.only_a_name(store):
            return Say(GetStorageStatsAnswer(result=True, usedBytes=0, capacityBytes=UNBOUNDED))
        case DeleteSnapshotsDirCommand() if zone.only_a_name(command.store):
            return Say(WireAnswer(result=True, details="nothing is kept there"))
    return None


def _copy(command: CopyCommand, zone: Zone) -> Meaning | None:
    source, destination = command.srcTO, command.destTO
    from_name, to_name = (zone.only_a_name(data.store) for data in (source, destination))
    if not to_name:
        if not from_name:
            return None
        found, staged = in_s3(source, zone)
        # A backup is what its manifest says, which is read with it; and it is rewritten when one that it builds on goes.
        compared = staged.kind is Kind.REFERENCE and source.type != "snapshot"
        unless = (zone.store(staged.store), staged) if compared else None
        return Instead(command.model_copy(update={"srcTO": found}), unless)
    store = source.store
    if store.storeType == "s3" and source.type == destination.type and source.path:
        return Remember(command, zone.store(zone.mark_of(store)), source.path.strip("/"))
    if purpose_of(store) is Purpose.PRIMARY and source.type == "volume" and destination.type != "snapshot":
        return Keep(command)
    raise OperationUnsupported(
        f"a {source.type} from {store.storeType} storage is not staged as a {destination.type}: objects in S3 are, and volumes"
        " from primary storage; nothing was copied"
    )


def _delete(command: DeleteCommand, zone: Zone) -> Meaning:
    staged = staged_of((command.data.path or "").strip("/"), zone.key)
    if staged is None or staged.kind is Kind.REFERENCE:
        return Say(command.answered_by(result=True, details="nothing was kept there; what it stood for stays in S3"))
    return Instead(command.model_copy(update={"data": in_s3(command.data, zone)[0]}))


def in_s3(data: DataTO, zone: Zone) -> tuple[DataTO, Staged]:
    """The object that data in such a store stands for."""
    staged = _staged(data.path or "", zone)
    store = zone.store(staged.store)
    changed: dict[str, object] = {
        "path": staged.key,
        "imageDataStore" if data.type == "template" else "dataStore": store,
    }
    if data.type == "snapshot":
        parents = [staged_of(parent.strip("/"), zone.key) for parent in data.parents or ()]
        known = [parent.key for parent in parents if parent is not None]
        changed["parents"] = (
            known if known and len(known) == len(parents) else None
        )  # without them the manifest says it
        changed["parentSnapshotPath"] = None
    return data.model_copy(update=changed), staged


def _staged(path: str, zone: Zone) -> Staged:
    staged = staged_of(path.strip("/"), zone.key)
    if staged is None:
        raise InvalidReference(
            "nothing lies in this store, and the path does not say what it stands for: no agent of this zone made it",
            path=path[:200],
        )
    return staged


# ------------------------------------------------------------------------------------------------ objects looked at


def found(listing: Answer, store: S3TO, key: str, zone: Zone) -> Staged:
    """The object as a listing of its name shows it. `NotFound`."""
    for path, size, modified, is_folder in zip(
        listing.paths or (), listing.sizes or (), listing.lastModified or (), listing.isDirs or (), strict=True
    ):
        if path == key and not is_folder:
            return Staged(Kind.REFERENCE, zone.mark_of(store), key, size, max(0, modified))
    raise NotFound(f"there is no object {key} in bucket {store.bucketName}; nothing was staged", ref=key)


def require_same(staged: Staged, now: Staged) -> None:
    """`ObjectChanged` where the object is another one than when its path was made."""
    if (now.size, now.modified) != (staged.size, staged.modified):
        raise ObjectChanged(
            f"{staged.key} is another object than the one that was staged: it had {staged.size} bytes and has {now.size};"
            " delete what the server has staged of it, so that it is staged again",
            ref=staged.key,
            staged=staged.size,
            found=now.size,
        )


def remembered(command: CopyCommand, staged: Staged, zone: Zone) -> WireAnswer:
    """The answer to a copy that was none. The disk's size is the one that the server knows; else the object's, as with any file
    that nobody looked into."""
    data, path = command.srcTO, path_of(staged, zone.key)
    image_format = data.format.value if data.format else None
    new: Made
    match data.type:
        case "template":
            size = data.size or staged.size
            new = TemplateMade(path=path, size=size, physicalSize=staged.size, format=image_format)
        case "volume":
            new = VolumeMade(path=path, size=data.size or staged.size, format=image_format)
        case "snapshot":
            new = SnapshotMade(path=path, physicalSize=staged.size)
    return CopyCmdAnswer(result=True, details="not copied: its path stands for the object in S3", newData=new)


# ------------------------------------------------------------------------------------------------- objects of its own


def kept(command: CopyCommand, name: str, zone: Zone) -> CopyCommand:
    """The copy that makes it, below a folder of that name. `TooLarge` where the path would be too long."""
    store = next(iter(zone.stores.values()))
    target = command.destTO
    update = {
        "path": f"{FOLDER}/{name}/{(target.path or '').strip('/')}",
        "imageDataStore" if target.type == "template" else "dataStore": store,
    }
    target = target.model_copy(update=update)
    _own_path(placed(command.srcTO, target).path or "", zone)
    return command.model_copy(update={"destTO": target})


def kept_told(answer: WireAnswer, zone: Zone) -> WireAnswer:
    """The answer to that copy, with the path in place of the key. A failure stays as it is."""
    if not isinstance(answer, CopyCmdAnswer) or answer.newData is None or answer.newData.path is None:
        return answer
    path = _own_path(answer.newData.path, zone)
    return answer.model_copy(update={"newData": answer.newData.model_copy(update={"path": path})})


def _own_path(key: str, zone: Zone) -> str:
    mark = next(iter(zone.stores))
    return path_of(Staged(Kind.OWN, mark, key), zone.key)
