"""The files of a pool: what is made, under which names and modes, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.cache.description import DESCRIPTION_LIMIT, Description
from stores.cache.directory import FOLDERS, PoolDirectory, directory_mode
from stores.cache.entries import Entries
from stores.cache.errors import LeaseLost
from stores.cache.ledger import Entry
from stores.cache.policy import Queue
from stores.cache.schema import EntryState
from stores.errors import AccessDenied, IntegrityError, StoreError, TooLarge

KEY = "ab" * 32
FILL = "0123456789abcdef"
CONTENT = os.urandom(10_000)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[PoolDirectory]:
    made = PoolDirectory("pool", tmp_path / "pool")
    assert not made.open()
    made.lay_out()
    yield made
    made.close()


@pytest.fixture
def entries(directory: PoolDirectory) -> Entries:
    return Entries(directory)


def description(**changes: object) -> Description:
    values = {"key": KEY, "fill": FILL, "store": "s", "ref": "r", "version": "v", "size": len(CONTENT), "digest": None}
    return Description(**(values | changes))  # type: ignore[arg-type]


def published(entries: Entries) -> Entry:
    entries.create(FILL).write_bytes(CONTENT)
    facts = entries.publish(description())
    return Entry(
        id=1,
        pool="pool",
        key=KEY,
        file=description().file,
        store="s",
        ref="r",
        version="v",
        size=facts.size,
        charge=0,
        state=EntryState.READY,
        evictor=None,
        queue=Queue.SMALL,
        turn=0,
        hits=0,
        pins=0,
        digest=None,
        inode=facts.inode,
        mtime_ns=facts.mtime_ns,
        published=0.0,
        used_at=0.0,
        proved_at=0.0,
    )


def names(directory: PoolDirectory) -> list[str]:
    return sorted(seen.name for folder in FOLDERS if folder != "objects" for seen in directory.listing(folder))


# ------------------------------------------------------------------------------------------------------ descriptions


@given(
    store=st.text(max_size=200),
    ref=st.text(max_size=500),
    version=st.none() | st.text(max_size=80),
    size=st.integers(0, 2**62),
)
def test_a_description_can_be_read_back(store: str, ref: str, version: str | None, size: int) -> None:
    try:
        made = description(store=store, ref=ref, version=version, size=size)
        data = made.encode()
    except (TooLarge, UnicodeEncodeError):
        return
    assert len(data) <= DESCRIPTION_LIMIT
    assert Description.decode(data) == made


@given(st.binary(max_size=300))
def test_anything_else_is_not_a_description(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Description.decode(data)


def test_a_description_of_another_layout_is_refused() -> None:
    with pytest.raises(IntegrityError):
        Description.decode(replace(description(), layout=2).encode())
    with pytest.raises(TooLarge):
        description(ref="x" * DESCRIPTION_LIMIT).encode()


# --------------------------------------------------------------------------------------------------------- directory


def test_a_new_pool_belongs_to_its_user_alone(directory: PoolDirectory) -> None:
    for path in (directory.path, *directory.path.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
    again = PoolDirectory("pool", directory.path)
    assert again.open()
    again.close()


@pytest.mark.parametrize(("file_mode", "mode"), [(0o600, 0o700), (0o640, 0o750), (0o644, 0o755)])
def test_who_may_read_the_files_may_pass_the_folders(file_mode: int, mode: int) -> None:
    assert directory_mode(file_mode) == mode


def test_a_directory_that_others_could_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o750)
    refused = PoolDirectory("pool", tmp_path / "open")
    with pytest.raises(AccessDenied, match="mode 750"):
        refused.open()
    refused.close()
    allowed = PoolDirectory("pool", tmp_path / "open", file_mode=0o640)
    allowed.open()
    allowed.close()
    os.chown(tmp_path / "open", 12345, -1)
    with pytest.raises(AccessDenied, match="user 12345"):
        allowed.open()
    allowed.close()


def test_the_directory_of_another_pool_is_refused(directory: PoolDirectory) -> None:
    other = PoolDirectory("other", directory.path)
    with pytest.raises(IntegrityError, match="not the cache pool other"):
        other.open()
    other.close()


def test_who_lives_is_known_by_a_lock_that_dies_with_the_process(directory: PoolDirectory) -> None:
    script = (
        "import sys, pathlib; from stores.cache.directory import PoolDirectory;"
        f" d = PoolDirectory('pool', pathlib.Path({str(directory.path)!r})); d.open(); d.live('someone');"
        " print('alive', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "alive\n"
        assert directory.lives("someone")
        process.kill()
        process.wait()
        assert not directory.lives("someone")
    directory.bury("someone")
    directory.bury("someone")
    assert not directory.lives("someone")


def test_a_probe_leaves_nothing(directory: PoolDirectory) -> None:
    before = {seen.name for seen in directory.listing("")}
    directory.probe()
    assert {seen.name for seen in directory.listing("")} == before


# ----------------------------------------------------------------------------------------------------------- entries


def test_publication_moves_file_and_description(directory: PoolDirectory, entries: Entries) -> None:
    entry = published(entries)
    assert entries.path_of(entry).read_bytes() == CONTENT
    assert entries.path_of(entry).stat().st_mode & 0o777 == 0o600
    assert entries.describe(entry.file) == description()
    assert entries.prove(entry) is None
    assert directory.listing("fill") == []
    facts = entries.finished(KEY, FILL)
    assert facts is not None
    assert facts.inode == entry.inode


def test_what_is_not_whole_is_not_published(directory: PoolDirectory, entries: Entries) -> None:
    entries.create(FILL).write_bytes(CONTENT[:-1])
    with pytest.raises(IntegrityError):
        entries.publish(description())
    assert entries.finished(KEY, FILL) is None
    entries.discard(KEY, FILL)
    entries.discard(KEY, FILL)
    with pytest.raises(LeaseLost):
        entries.publish(description())
    entries.discard(KEY, FILL)
    assert all(".." not in name and len(name) == 2 for name in names(directory))


def test_a_file_is_made_once(entries: Entries, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"kept")
    entries.path_of_fill(FILL).symlink_to(target)
    entries.create(FILL).write_bytes(CONTENT)
    assert target.read_bytes() == b"kept"
    assert not entries.path_of_fill(FILL).is_symlink()


def _grow(path: Path) -> None:
    path.write_bytes(CONTENT + b"x")


def _touch(path: Path) -> None:
    os.utime(path)


def _replace(path: Path) -> None:
    status = path.stat()
    new = path.with_name("new")
    new.write_bytes(CONTENT)
    new.chmod(0o600)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.rename(path)


def _link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _open_up(path: Path) -> None:
    path.chmod(0o666)


def _give_away(path: Path) -> None:
    os.chown(path, 12345, -1)


@pytest.mark.parametrize("change", [_grow, _touch, _replace, _link, _pipe, _folder, _open_up, _give_away, Path.unlink])
def test_a_look_finds_every_change_that_shows(entries: Entries, change: Callable[[Path], None]) -> None:
    entry = published(entries)
    change(entries.path_of(entry))
    assert entries.prove(entry) is not None


def test_a_hypervisor_may_own_what_others_may_read(tmp_path: Path) -> None:
    directory = PoolDirectory("pool", tmp_path / "pool", file_mode=0o640)
    directory.open()
    directory.lay_out()
    entries = Entries(directory)
    entry = published(entries)
    _give_away(entries.path_of(entry))
    assert entries.prove(entry) is None
    directory.close()


def test_removal_and_quarantine_can_be_repeated(directory: PoolDirectory, entries: Entries) -> None:
    entry = published(entries)
    for _ in range(2):
        entries.set_aside(entry)
    assert {seen.name for seen in directory.listing("quarantine")} == {entry.file, f"{entry.file}.json"}
    for _ in range(2):
        entries.remove([entry])
    assert directory.listing("quarantine") == []


@pytest.mark.parametrize("name", ["../outside", "a/b", "", ".hidden", "x" * 300, "a\0b"])
def test_names_that_no_pool_has_are_refused(entries: Entries, name: str) -> None:
    for call in (entries.create, entries.path_of_fill, entries.sync_fill, lambda fill: entries.discard(None, fill)):
        with pytest.raises(StoreError):
            call(name)
