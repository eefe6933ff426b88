"""Which place a `DataStoreTO` means, as far as its fields alone tell."""

from __future__ import annotations

from collections.abc import Hashable
from urllib.parse import SplitResult, urlsplit

from stores.errors import InvalidReference
from stores.secret import Secret
from stores.to import DataStoreTO, PrimaryDataStoreTO

ISCSI_POOLS = ("Iscsi",)
"""Pool types that are LUNs of iSCSI targets: reached by host and port, with the credentials of their details."""

SMB_POOLS = ("SMB",)
"""Pool types that are a folder of an SMB share: reached by host and port, with the credentials of their details."""

RBD_POOLS = ("RBD",)
"""Pool types that are a pool of a Ceph cluster: reached by its monitors, with the user and the key of their details."""

REACHED = (*SMB_POOLS, *ISCSI_POOLS, *RBD_POOLS)
"""Pool types that are reached by host, port and details."""

MOUNTED_POOLS = ("NetworkFilesystem",)
"""Pool types that are mounted by their uuid: an NFS export of host and path, with the options of their details."""

MOUNT_OPTIONS = "nfsmountopts"
"""CloudStack's name for them (ApiConstants.NFS_MOUNT_OPTIONS)."""


def identity_of(to: DataStoreTO) -> Hashable:
    """Everything that decides which place is meant and who asks: all fields of the object except those that only describe.

    Credentials and endpoint are both part of it: two endpoints may know the same access key.
    """
    if isinstance(to, PrimaryDataStoreTO):
        details = to.details or {}
        reached: tuple[Hashable, ...] = ()
        if to.poolType in REACHED:
            reached = (to.host, to.port, *sorted(details.items()))
        elif to.poolType in MOUNTED_POOLS:
            reached = (to.host, details.get(MOUNT_OPTIONS))
        return (to.storeType, to.poolType, to.uuid, to.path, *reached)
    return (to.storeType, *(getattr(to, name) for name in sorted(type(to).model_fields)))


def split_url(url: Secret) -> SplitResult:
    try:
        return urlsplit(url.reveal())
    except ValueError:
        # Not chained: that error quotes the URL, which may hold a password.
        raise InvalidReference("the URL of a store is malformed") from None


def export_name(url: SplitResult) -> str:
    """`host/export` of an NFS URL, in one spelling."""
    try:
        host, port = url.hostname, url.port
    except ValueError:
        host, port = None, None
    if not host or "@" in url.netloc or ".." in url.path.split("/") or not url.path.isprintable():
        raise InvalidReference("an NFS URL has the form nfs://host/export")
    if port not in (None, 2049):
        host = f"{host}:{port}"
    return host + "/" + "/".join(part for part in url.path.split("/") if part)
