"""NBD by the real thing: a read-only qemu-nbd for each disk, host and session that somebody asked about.

XAPI's own service has one port on each host; here each export has one, which `get_nbd_info` tells. The disk is what it was
when it was asked about: XAPI attaches it read-only, so that it is a snapshot in all sane uses.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.doubles.xapi.world import World

MOST_CONNECTIONS = 16


class NbdServers:
    def __init__(self, world: World, folder: Path) -> None:
        folder.mkdir()
        self._world = world
        self._folder = folder
        self._servers: dict[tuple[str, int, str], tuple[asyncio.subprocess.Process, int]] = {}
        self._credentials: dict[int, str] = {}

    async def info(self, vdi: str, session: str) -> list[dict[str, Any]]:
        """One entry for each host that sees the disk and has a network for NBD."""
        purposes = {purpose for ref in self._world.db.refs("network") for purpose in self._purposes(ref)}
        if not purposes & {"nbd", "insecure_nbd"}:
            return []
        tls = "nbd" in purposes
        sr = self._world.db.field("VDI", vdi, "SR")
        found = []
        for host in range(len(self._world.hosts)):
            if not self._world.sees(host, sr):
                continue
            export = f"/{self._world.db.field('VDI', vdi, 'uuid')}?session_id={session}"
            port = await self._serve(vdi, host, export, tls=tls)
            found.append(
                {
                    "exportname": export,
                    "address": "127.0.0.1",
                    "port": port,
                    "cert": self._credentials[host] if tls else "",
                    "subject": self._world.host_name(host) if tls else "",
                }
            )
        return found

    def _purposes(self, network: str) -> list[str]:
        purposes: list[str] = self._world.db.field("network", network, "purpose")
        return purposes

    async def _serve(self, vdi: str, host: int, export: str, *, tls: bool) -> int:
        key = (vdi, host, export)
        if key in self._servers and self._servers[key][0].returncode is None:
            return self._servers[key][1]
        image = self._folder / f"{self._world.db.field('VDI', vdi, 'uuid')}.raw"
        if not image.exists():
            await asyncio.to_thread(self._world.storage.disks[vdi].flatten, image)
        port = _free_port()
        argv = ["qemu-nbd", "--read-only", "--persistent", f"--shared={MOST_CONNECTIONS}", "--format=raw"]
        argv += ["--bind=127.0.0.1", f"--port={port}", f"--export-name={export}"]
        if tls:
            folder = self._tls_folder(host)
            argv += ["--object", f"tls-creds-x509,id=tls,endpoint=server,verify-peer=off,dir={folder}"]
            argv += ["--tls-creds=tls"]
        process = await asyncio.create_subprocess_exec(*argv, str(image), stdin=asyncio.subprocess.DEVNULL)
        self._servers[key] = (process, port)
        await _until_listening(port, process)
        return port

    def _tls_folder(self, host: int) -> Path:
        folder = self._folder / f"tls-{host}"
        if not folder.exists():
            leaf = self._world.authority.leaf(self._world.host_name(host))
            self._world.authority.write_nbd_credentials(folder, leaf)
            self._credentials[host] = leaf.cert_chain_pems[0].bytes().decode()
        return folder

    def forget(self, vdi: str) -> None:
        """No longer offered."""
        for key in [key for key in self._servers if key[0] == vdi]:
            with suppress(ProcessLookupError):
                self._servers[key][0].terminate()

    async def close(self) -> None:
        for process, _ in self._servers.values():
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
        shutil.rmtree(self._folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _until_listening(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(30):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            await writer.wait_closed()
            return
    raise RuntimeError(f"qemu-nbd ended with {process.returncode}")
