"""A daemon that drives a fake pool of XenServer hosts: its configuration, and what commands call things."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.doubles.xapi import Access
from tests.servers import S3Server

Body = dict[str, Any]

XEN_ENVIRONMENT = {"STORAGE_AGENT__AGENT__HYPERVISOR": "XenServer"}

_OPTIONS = """
[logs]
level = "debug"
format = "json"

[xen]
pools = [{{ name = "double", hosts = {hosts}, ca_file = "{ca}", user = "{user}", password_file = "{password}", grace_s = 3 }}]
"""


def xen_options(access: Access, directory: Path) -> str:
    """More TOML for `agent_host`. What it names is written into `directory`."""
    ca, password = directory / "xen-ca.pem", directory / "xen-password"
    ca.write_text(access.ca_pem)
    write_password(password, access.password)
    hosts = "[" + ", ".join(f'"{url}"' for url in access.urls) + "]"
    return _OPTIONS.format(hosts=hosts, ca=ca, user=access.user, password=password)


def write_password(file: Path, password: str) -> None:
    file.touch(mode=0o600)
    file.write_text(f"{password}\n")
    os.chmod(file, 0o600)


def in_sr(sr: str, kind: str, path: str, **fields: Any) -> Body:
    """An image in an SR, which is called by its name."""
    store = {"storeType": "primary", "uuid": sr, "poolType": "NetworkFilesystem"}
    where = "imageDataStore" if kind == "template" else "dataStore"
    return {"type": kind, "path": path, "hypervisorType": "XenServer", where: store, **fields}


def in_s3(server: S3Server, bucket: str, kind: str, path: str, **fields: Any) -> Body:
    keys = {"accessKey": server.access_key, "secretKey": server.secret_key, "bucketName": bucket}
    store = {"storeType": "s3", "endPoint": server.endpoint, **keys}
    where = "imageDataStore" if kind == "template" else "dataStore"
    return {"type": kind, "path": path, "hypervisorType": "XenServer", where: store, **fields}
