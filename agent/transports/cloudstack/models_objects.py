"""Objects inside of commands and answers that are the wire's own, beside the transfer objects of `stores.to`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from agent.transports.cloudstack.models import WireObject
from stores.secret import Secret


class StorageFilerTO(WireObject):
    """com.cloud.agent.api.to.StorageFilerTO: a pool, where CloudStack does not use a PrimaryDataStoreTO."""

    id: int | None = None
    uuid: str
    host: str | None = None
    path: str | None = None
    userInfo: Secret | None = None
    port: int | None = None
    type: str


class TemplateMade(WireObject):
    """The part of a TemplateObjectTO that an answer has: what the server does not know yet. The same for the two below."""

    type: Literal["template"] = "template"
    path: str | None = None
    name: str | None = None
    uuid: str | None = None
    size: int | None = None  # virtual
    physicalSize: int | None = None
    format: str | None = None


class VolumeMade(WireObject):
    type: Literal["volume"] = "volume"
    path: str | None = None
    name: str | None = None
    uuid: str | None = None
    size: int | None = None  # virtual
    format: str | None = None
    encryptFormat: str | None = None


class SnapshotMade(WireObject):
    type: Literal["snapshot"] = "snapshot"
    path: str | None = None
    name: str | None = None
    physicalSize: int | None = None
    parentSnapshotPath: str | None = None


Made: TypeAlias = Annotated[TemplateMade | VolumeMade | SnapshotMade, Field(discriminator="type")]
"""A DataTO without its store, whose secrets have no business in an answer."""


class DiskMade(WireObject):
    """The part of a DiskTO (com.cloud.agent.api.to) that an answer has."""

    data: Made | None = None
    diskSeq: int | None = None
    path: str | None = None
    type: str | None = None
