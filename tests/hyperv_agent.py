"""A daemon that drives a fake Hyper-V host and a real Samba: its configuration, and what commands call things."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.doubles.hyperv import Host
from tests.doubles.hyperv.host import PASSWORD
from tests.hyperv import POOL
from tests.samba import SHARE, SambaServer
from tests.servers import S3Server

Body = dict[str, Any]

HYPERV_ENVIRONMENT = {"STORAGE_AGENT__AGENT__HYPERVISOR": "Hyperv"}

_OPTIONS = """
[logs]
level = "debug"
format = "json"

[[hyperv.hosts]]
name = "double"
address = "{address}"
port = {port}
user = {user}
password_file = "{password}"
ca_file = "{ca}"
shares = {{ "{share}" = {path} }}

[smb]
credentials = {{ "127.0.0.1/{name}" = "{credentials}" }}
"""


def hyperv_options(host: Host, samba: SambaServer, folder: str, directory: Path) -> str:
    """More TOML for `agent_host`: `folder` of the share is the host's pool. What it names is written into `directory`."""
    password, credentials = directory / "hyperv-password", directory / "share-credentials"
    _write(password, f"{PASSWORD}\n")
    _write(credentials, f"username=root\npassword={samba.password}\n")
    return _OPTIONS.format(
        address=host.endpoint.address,
        port=host.endpoint.port,
        user=json.dumps(host.endpoint.user),
        password=password,
        ca=host.endpoint.ca_file,
        share=f"127.0.0.1:{samba.port}/{SHARE}/{folder}",
        path=json.dumps(POOL),
        name=SHARE,
        credentials=credentials,
    )


def hyperv_config(host: Host, samba: SambaServer, folder: str, directory: Path, *, roots: Sequence[Path]) -> Body:
    """The same with all else that a configuration needs, for who has no process of the agent."""
    options = hyperv_options(host, samba, folder, directory)
    agent = {"state_dir": str(directory / "state"), "runtime_dir": str(directory / "run"), "hypervisor": "Hyperv"}
    return {**tomllib.loads(options), "agent": agent, "pools": {"roots": [str(root) for root in roots]}}


def in_share(samba: SambaServer, folder: str, kind: str, path: str, *, full: bool = False, **fields: Any) -> Body:
    """An image in that pool."""
    store = {
        "storeType": "primary",
        "uuid": "hv",
        "poolType": "SMB",
        "host": "127.0.0.1",
        "port": samba.port,
        "path": f"/{SHARE}/{folder}",
        "fullCloneFlag": full,
    }
    where = "imageDataStore" if kind == "template" else "dataStore"
    return {"type": kind, "path": path, "hypervisorType": "Hyperv", where: store, **fields}


def in_s3(server: S3Server, bucket: str, kind: str, path: str, **fields: Any) -> Body:
    keys = {"accessKey": server.access_key, "secretKey": server.secret_key, "bucketName": bucket}
    store = {"storeType": "s3", "endPoint": server.endpoint, **keys}
    where = "imageDataStore" if kind == "template" else "dataStore"
    return {"type": kind, "path": path, "hypervisorType": "Hyperv", where: store, **fields}


def _write(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text)
    os.chmod(file, 0o600)
