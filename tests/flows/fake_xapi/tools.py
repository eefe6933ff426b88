"""Disks in the fake pool, and programs that know nothing of it: curl and libvhdi."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pyvhdi
import XenAPI

from stores.contract import MiB
from tests.doubles.xapi import Remote

BLOCK = 2 * MiB


def new_disk(api: Any, sr: str, size: int, **further: Any) -> str:
    told = {"SR": sr, "virtual_size": str(size), "type": "user", "sharable": False, "read_only": False}
    return str(api.VDI.create({**told, "name_label": "disk", "other_config": {}, **further}))


def shared(api: Any) -> str:
    return str(api.SR.get_by_name_label("shared")[0])


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def failure(call: Any, *arguments: Any, **further: Any) -> list[str]:
    with pytest.raises(XenAPI.Failure) as caught:
        call(*arguments, **further)
    details: list[str] = caught.value.details
    return details


class Curl:
    """The handlers as `curl` sees them: `-T` and `-o` with a session in a cookie."""

    def __init__(self, pool: Remote, session: Any, folder: Path) -> None:
        self._pool = pool
        self._session = session
        self._heads = folder / "heads"
        self._ca = folder / "ca.pem"
        self._ca.write_text(pool.access.ca_pem)

    def run(self, *arguments: str, host: int = 0, path: str) -> tuple[str, dict[str, str]]:
        """The first status line, and the headers of the answer."""
        command = ["curl", "-s", "-D", str(self._heads), "--cacert", str(self._ca)]
        command += ["-b", f"session_id={self._session._session}", *arguments, self._pool.access.urls[host] + path]
        subprocess.run(command, capture_output=True, timeout=60, check=False)
        status, *lines = self._heads.read_text().splitlines() or [""]
        pairs = [line.split(": ", 1) for line in lines if ": " in line]
        return status, dict(pairs)

    def put(self, source: Path, query: str) -> dict[str, Any]:
        """The task of the upload, destroyed. Where the host ends early, curl may see a reset before it sees the answer."""
        task = self._session.xenapi.task.create("upload", "")
        upload = ["-T", str(source), "-H", "Expect:", "-o", "/dev/null"]  # or curl waits a second for 100 Continue
        self.run(*upload, path=f"/import_raw_vdi?{query}&task_id={task}")
        return self.ended(task)

    def get(self, target: Path, query: str, *, host: int = 0) -> dict[str, Any]:
        status, headers = self.run("-o", str(target), path=f"/export_raw_vdi?{query}", host=host)
        assert status == "HTTP/1.1 200 OK"
        assert "content-length" not in headers
        return self.ended(headers["task-id"])

    def ended(self, task: str) -> dict[str, Any]:
        api = self._session.xenapi
        token = ""
        while (record := api.task.get_record(task))["status"] == "pending":
            token = getattr(api.event, "from")([f"task/{task}"], token, 10.0)["token"]
        api.task.destroy(task)
        found: dict[str, Any] = record
        return found


def disk_bytes(pool: Remote, number: str, folder: Path) -> bytes:
    pool.control("save", vdi=number, path=str(folder / "saved"))
    return (folder / "saved").read_bytes()


def vhdi_digest(path: Path, parent: Path | None = None) -> tuple[int, str]:
    """Size and content as libvhdi reads them; `parent`: the VHD that this one is a difference from."""
    with path.open("rb") as file, (parent or path).open("rb") as below_file:
        image, below = pyvhdi.file(), pyvhdi.file()
        image.open_file_object(file)
        below.open_file_object(below_file)
        if parent is not None:
            assert image.parent_identifier == below.identifier
            image.set_parent(below)
        hashed, size = hashlib.sha256(), image.get_media_size()
        for offset in range(0, size, BLOCK):
            hashed.update(image.read_buffer_at_offset(min(BLOCK, size - offset), offset))
        image.close()
        below.close()
    return size, hashed.hexdigest()


def new_elsewhere(api: Any) -> str:
    return new_disk(api, api.SR.get_by_name_label("local-0")[0], 32 * MiB)
