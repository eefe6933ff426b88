"""What mounts: the tools' argv and errors, the mounter's distrust, and what is said between daemon and mounter."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.config import Config, PoolsSection
from agent.config_nfs import NfsSection
from agent.mounter import answer, checked
from agent.mounting import AskedMounter, ToolMounter
from stores.errors import AccessDenied, NotFound, PolicyRefused, StorageError
from stores.mounts.export import export
from stores.mounts.mount import MountFailed, MountHangs, MountInUse
from stores.mounts.table import Mounted
from stores.tools.process import ToolFailed, ToolResult, ToolRunner, ToolTimeout
from tests.doubles.mounting import NotingMounter

SHARE = export("nfs.test", "/export/a", ["vers=4.2"])


class NotingTools(ToolRunner):
    """Runs nothing."""

    def __init__(self, failure: StorageError | None = None) -> None:
        super().__init__()
        self.argvs: list[list[str]] = []
        self._failure = failure

    async def run(self, argv: Sequence[str], **how: Any) -> ToolResult:
        self.argvs.append(list(argv))
        if self._failure is not None:
            raise self._failure
        return ToolResult(b"", b"")


def failed(said: str) -> ToolFailed:
    return ToolFailed(said, tool="mount.nfs", exit_code=32, stderr=said)


async def test_the_argv_of_a_mount_has_what_was_checked_and_no_more(tmp_path: Path) -> None:
    tools, at = NotingTools(), tmp_path / "p"
    await ToolMounter(tools).mount(SHARE, at)
    options = "nosuid,nodev,noexec,retry=0,vers=4.2"
    assert tools.argvs == [["mount.nfs", "nfs.test:/export/a", str(at), "-o", options]]
    assert at.is_dir()
    await ToolMounter(tools).unmount(at)
    assert tools.argvs[1] == ["umount", "--no-canonicalize", str(at)]
    assert not at.exists()


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (failed("mount.nfs: access denied by server while mounting nfs.test:/export/a"), AccessDenied),
        (
            failed("mount.nfs: mounting nfs.test:/export/a failed, reason given by server: No such file or directory"),
            NotFound,
        ),
        (failed("mount.nfs: Connection refused for nfs.test:/export/a on /mnt/p"), MountFailed),
        (ToolTimeout("stopped", tool="mount.nfs", deadline_s=60), MountHangs),
    ],
)
async def test_a_mount_that_fails_says_why_and_leaves_no_directory(
    tmp_path: Path, failure: StorageError, kind: type[StorageError]
) -> None:
    with pytest.raises(kind) as caught:
        await ToolMounter(NotingTools(failure)).mount(SHARE, tmp_path / "p")
    assert caught.value.details["export"] == SHARE.source
    assert list(tmp_path.iterdir()) == []


async def test_what_is_in_use_stays_and_so_does_what_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    with pytest.raises(MountInUse):
        await ToolMounter(NotingTools(failed("umount: /mnt/p: target is busy."))).unmount(tmp_path)
    await ToolMounter(NotingTools()).unmount(tmp_path)
    assert (tmp_path / "kept").exists()


# --------------------------------------------------------------------------------------------------------- the mounter


def config(root: Path, *exports: str) -> Config:
    return Config(pools=PoolsSection(mount_root=root), nfs=NfsSection(exports=exports))


def wanted(at: Path, **changed: object) -> bytes:
    asked = {"host": "nfs.test", "path": "/export/a", "options": ["vers=4.2"], **changed}
    return json.dumps({"mount": asked, "at": str(at)}).encode()


def test_a_request_is_what_the_daemon_makes_of_an_export(tmp_path: Path) -> None:
    found = checked(wanted(tmp_path / "p"), config(tmp_path, "nfs.test:/export"), {})
    assert (found.export, found.at) == (SHARE, tmp_path / "p")
    mounted = {tmp_path / "p": Mounted(tmp_path / "p", SHARE.source, "nfs4")}
    assert checked(json.dumps({"unmount": str(tmp_path / "p")}).encode(), config(tmp_path), mounted).export is None


Line = Callable[[Path], bytes]

HOSTILE: dict[str, Line] = {
    "not JSON": lambda root: b"{",
    "no object": lambda root: b"[]",
    "nothing": lambda root: b"{}",
    "no options": lambda root: json.dumps({"mount": {"host": "h", "path": "/"}, "at": str(root / "p")}).encode(),
    "elsewhere": lambda root: wanted(Path("/etc")),
    "deeper": lambda root: wanted(root / "a" / "b"),
    "above": lambda root: wanted(root / ".."),
    "the root itself": lambda root: wanted(root),
    "an odd name": lambda root: wanted(root / "-o"),
    "a link": lambda root: wanted(root / "link"),
    "taken": lambda root: wanted(root / "taken"),
    "an option": lambda root: wanted(root / "p", options=["suid"]),
    "options in one": lambda root: wanted(root / "p", options=["vers=4.2,suid"]),
    "a host": lambda root: wanted(root / "p", host="-v"),
    "a path": lambda root: wanted(root / "p", path="/export/../etc"),
    "another export": lambda root: wanted(root / "p", path="/exports"),
    "unmounting nothing": lambda root: json.dumps({"unmount": str(root / "p")}).encode(),
    "unmounting what is no NFS": lambda root: json.dumps({"unmount": str(root / "taken")}).encode(),
    "unmounting elsewhere": lambda root: b'{"unmount": "/"}',
}


@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE)
async def test_anything_else_is_refused_and_nothing_is_done(tmp_path: Path, line: Line) -> None:
    (tmp_path / "link").symlink_to("/etc")
    table = {tmp_path / "taken": Mounted(tmp_path / "taken", "/dev/sda", "ext4")}
    mounter = NotingMounter()
    said = json.loads(await answer(line(tmp_path), config(tmp_path, "nfs.test:/export"), mounter, lambda: table))
    assert said["error"] in ("PolicyRefused", "MountFailed")
    assert mounter.calls == []


# ------------------------------------------------------------------------------------------------- over the socket


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sa-m-") as place:
        yield Path(place)


@asynccontextmanager
async def served(root: Path, mounter: NotingMounter) -> AsyncIterator[AskedMounter]:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await answer(await reader.readline(), config(root), mounter, mounter.table))
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(one, root / "s"):
        yield AskedMounter(root / "s")


async def test_the_daemon_asks_and_is_told(root: Path) -> None:
    mounter = NotingMounter()
    async with served(root, mounter) as asked:
        await asked.mount(SHARE, root / "p")
        with pytest.raises(PolicyRefused, match="already"):
            await asked.mount(SHARE, root / "p")
        mounter.busy = True
        with pytest.raises(MountInUse):
            await asked.unmount(root / "p")
        mounter.busy = False
        await asked.unmount(root / "p")
    assert mounter.calls == ["mount nfs.test:/export/a p", "unmount p", "unmount p"]


@pytest.mark.parametrize("said", [b"", b"nonsense\n", b"[]\n", b"x" * 100_000])
async def test_a_mounter_that_says_nothing_of_use_is_a_failure(root: Path, said: bytes) -> None:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(said)
        writer.close()

    async with await asyncio.start_unix_server(one, root / "s"):
        with pytest.raises(MountFailed, match=r"storage-agent-mounter\.socket"):
            await AskedMounter(root / "s").mount(SHARE, root / "p")


async def test_no_mounter_at_all_is_one_too(root: Path) -> None:
    with pytest.raises(MountFailed, match=r"storage-agent-mounter\.socket"):
        await AskedMounter(root / "s").unmount(root / "p")
