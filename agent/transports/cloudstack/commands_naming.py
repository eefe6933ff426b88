"""Where things are and how they are called: the wire's stores and paths in the agent's terms. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from urllib.parse import urlsplit

from agent.transports.cloudstack.models_objects import StorageFilerTO
from hypervisors.contract import HypervisorType, OperationUnsupported
from stores.errors import InvalidReference
from stores.locations import RBD_POOLS
from stores.secret import Secret
from stores.to import (
    DataStoreRole,
    DataStoreTO,
    DataTO,
    ImageFormat,
    ImageStoreTO,
    NfsTO,
    PrimaryDataStoreTO,
)

_LEAST_DEPTH = 3
"""Of paths in an image store, such as `snapshots/<account>/<volume>`, the shortest of them."""
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")


class Purpose(StrEnum):
    """What a store is for; of an image cache it does not matter here that it is one."""

    PRIMARY = "primary"
    IMAGE = "image"


def purpose_of(store: DataStoreTO) -> Purpose:
    if store.storeType == "primary" or (store.storeType == "image" and store.role is DataStoreRole.PRIMARY):
        return Purpose.PRIMARY
    return Purpose.IMAGE


def pool_of(filer: StorageFilerTO, details: Mapping[str, Secret] | None = None) -> PrimaryDataStoreTO:
    """The one kind of pool that the agent knows."""
    told = {**(_ceph_login(filer) if filer.type in RBD_POOLS else {}), **(details or {})}
    return PrimaryDataStoreTO(
        uuid=filer.uuid,
        poolType=filer.type,
        id=filer.id,
        host=filer.host,
        path=filer.path,
        port=filer.port,
        details=told or None,
    )


def _ceph_login(filer: StorageFilerTO) -> dict[str, Secret]:
    """CloudStack has it as `user:key`."""
    user, _, key = (filer.userInfo.reveal() if filer.userInfo is not None else "").partition(":")
    return {"user": Secret(user), "secret": Secret(key)} if user and key else {}


def hypervisor_of(*data: DataTO) -> HypervisorType | None:
    """The one that the images are for, as far as the server says so and it is one of ours. None: the agent's own."""
    named = {each.hypervisorType for each in data} - {None, "None", "Any"}
    return next((known for known in HypervisorType if named == {known.value}), None)


def placed(source: DataTO, destination: DataTO) -> DataTO:
    """The destination of a copy under its final name.

    In a pool that is the name it came with. In an image store the server names a directory, and whoever copies gives the file
    a name: here always the same for the same copy, so that a second try finds what the first one left.
    """
    if purpose_of(destination.store) is Purpose.PRIMARY:
        return destination
    folder = (destination.path or "").strip("/")
    if not folder:
        raise InvalidReference(f"a {destination.type} in an image store needs a path, and none came with the command")
    return destination.model_copy(update={"path": f"{folder}/{_file_name(source, destination)}"})


def _file_name(source: DataTO, destination: DataTO) -> str:
    last = (source.path or source.name or "").rstrip("/").rpartition("/")[2]
    as_it_is = source.type == destination.type and purpose_of(source.store) is Purpose.IMAGE
    if last and (as_it_is or destination.type == "snapshot"):
        return last
    stem = destination.uuid or last or str(destination.id or "")
    if not stem:
        raise InvalidReference(f"nothing gives the {destination.type} a name: it needs a uuid, or its source a path")
    return f"{stem}.{extension(destination.format or source.format)}"


def deep_enough(data: DataTO) -> DataTO:
    """For deleting in an image store: what has a path of an object's depth there. A short one would name everything that the
    server keeps."""
    path = (data.path or "").strip("/")
    if len(path.split("/")) < _LEAST_DEPTH:
        raise InvalidReference(
            f"{path[:200] or 'no path'} is not deep enough to be one object of an image store; nothing was deleted"
        )
    return data.model_copy(update={"path": path})


def extension(image_format: ImageFormat | None) -> str:
    """Of a file of that format; images of an unknown one are qcow2, which is KVM's own."""
    return (image_format or ImageFormat.QCOW2).value.lower()


def downloaded(url: Secret) -> tuple[DataStoreTO, str]:
    """The store that a URL's directory is, and the name of the object in it."""
    parts = urlsplit(url.reveal())
    folder, _, name = parts.path.rpartition("/")
    if not name or parts.query or parts.fragment:
        raise OperationUnsupported("a download needs a URL that ends in the name of a file, without a query (?)")
    base = f"{parts.scheme}://{parts.netloc}{folder}"
    match parts.scheme:
        case "http" | "https":
            return ImageStoreTO(uri=Secret(base)), name
        case "nfs":
            return NfsTO.model_validate({"_url": base}), name
    raise OperationUnsupported("downloads are done from http://, https:// and nfs:// URLs only")


def file_name(name: str, fallback: str) -> str:
    """The last part of a URL where that can be a file's name, else the other one."""
    return name if _FILE_NAME.fullmatch(name) else fallback
