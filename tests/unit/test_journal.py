"""The journal: durable, one answer for one id, no secrets in it, and loud when it cannot be used."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from agent.commands import COMMAND, Answer, Failure, State, canonical
from agent.failures import JournalLocked, JournalUnusable
from agent.journal import Journal, Retention
from agent.journal_file import Entry
from tests.doubles.full_disk import largest_file


def entry(command_id: str, at: float = 1.0, fingerprint: str = "f") -> Entry:
    return Entry(command_id, "Ping", '{"command":"Ping"}', fingerprint, at)


def ended(command_id: str, state: State = State.SUCCEEDED, at: float = 2.0) -> Answer:
    error = None if state is State.SUCCEEDED else Failure(kind="Unavailable", retryable="yes", message="no answer")
    return Answer.final(
        command_id, "Ping", state, accepted_at=1.0, started_at=1.5, finished_at=at, outcome=None, error=error
    )


async def finish_many(journal: Journal, numbers: Iterable[int], at: float) -> None:
    await asyncio.gather(*(journal.accept(entry(f"c{n}")) for n in numbers))
    await asyncio.gather(*(journal.finish(ended(f"c{n}", at=at)) for n in numbers))


async def test_what_was_written_is_there_after_opening_again(tmp_path: Path) -> None:
    answer = ended("b", State.FAILED)
    async with Journal(tmp_path, clock=lambda: 3.0) as journal:
        assert await journal.accept(entry("a")) is None
        assert await journal.accept(entry("b")) is None
        assert await journal.accept(entry("c")) is None
        await journal.begin("b", 1.5)
        await journal.begin("c", 1.75)
        await journal.finish(answer)
    async with Journal(tmp_path, clock=lambda: 3.0) as journal:
        found = await journal.find("b")
        assert found is not None
        assert found.told() == answer
        assert [(e.id, e.state, e.started_at) for e in await journal.unfinished()] == [
            ("a", State.ACCEPTED, None),
            ("c", State.RUNNING, 1.75),
        ]
        assert await journal.find("nobody") is None


async def test_an_id_is_accepted_once(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        first = await asyncio.gather(*(journal.accept(entry("a", at)) for at in (1.0, 2.0, 3.0)))
        assert [known and known.accepted_at for known in first] == [None, 1.0, 1.0]
        again = await journal.accept(entry("a", 4.0))
        assert again is not None
        assert again.accepted_at == 1.0


async def test_a_final_answer_stays(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        await journal.accept(entry("a"))
        await journal.finish(ended("a", State.SUCCEEDED))
        await journal.finish(ended("a", State.FAILED))
        await journal.begin("a", 9.0)
        found = await journal.find("a")
        assert found is not None
        assert found.told() == ended("a", State.SUCCEEDED)


async def test_many_callers_share_transactions(tmp_path: Path) -> None:
    async with Journal(tmp_path, clock=lambda: 3.0) as journal:
        size = 2000
        await asyncio.gather(*(journal.accept(entry(f"c{n}")) for n in range(size)))
        await asyncio.gather(*(journal.finish(ended(f"c{n}")) for n in range(size)))
        assert await journal.unfinished() == []
        newest = await journal.newest(10)
        assert [e.id for e in newest] == [f"c{n}" for n in range(size - 1, size - 11, -1)]
        assert await journal.newest(10, State.FAILED) == []


async def test_a_cancelled_waiter_takes_nothing_back(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        waiter = asyncio.ensure_future(journal.accept(entry("a")))
        waiter.cancel()
        assert await journal.find("a") is not None


async def test_old_and_too_many_finished_commands_are_forgotten_and_unfinished_ones_are_not(tmp_path: Path) -> None:
    now = 1000.0
    retention = Retention(age_s=100, count=300)
    async with Journal(tmp_path, retention=retention, clock=lambda: now) as journal:
        await journal.accept(entry("running"))
        await journal.accept(entry("old"))
        await journal.finish(ended("old", at=now - 101))
        await journal.accept(entry("young"))
        await journal.finish(ended("young", at=now - 99))
        await finish_many(journal, range(254), at=now)
        assert await journal.find("old") is None
        assert await journal.find("young") is not None
        for first in range(254, 804, 50):
            await finish_many(journal, range(first, first + 50), at=now)
        assert await journal.find("young") is None
        assert [e.id for e in await journal.unfinished()] == ["running"]
        assert len(await journal.newest(10_000)) <= retention.count + 256


async def test_the_file_is_private_and_holds_no_secret(tmp_path: Path) -> None:
    command = COMMAND.validate_python(
        {
            "command": "ComputeChecksum",
            "id": "c-1",
            "templatePath": "a",
            "store": {"storeType": "s3", "bucketName": "b", "accessKey": "AK", "secretKey": "hunter2-in-clear"},
        }
    )
    directory = tmp_path / "state"
    previous = os.umask(0)
    try:
        async with Journal(directory) as journal:
            await journal.accept(
                Entry("c-1", "x", command.model_dump_json(), journal.fingerprint(canonical(command)), 1.0)
            )
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            for file in directory.iterdir():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
                assert b"hunter2-in-clear" not in file.read_bytes()
    finally:
        os.umask(previous)


async def test_fingerprints_tell_secrets_apart_and_are_keyed_by_installation(tmp_path: Path) -> None:
    async with Journal(tmp_path / "one") as one, Journal(tmp_path / "two") as two:
        assert one.fingerprint(b"a") == one.fingerprint(b"a")
        assert one.fingerprint(b"a") != one.fingerprint(b"b")
        assert one.fingerprint(b"a") != two.fingerprint(b"a")
        before = one.fingerprint(b"a")
    async with Journal(tmp_path / "one") as one:
        assert one.fingerprint(b"a") == before


async def test_two_agents_cannot_share_it(tmp_path: Path) -> None:
    async with Journal(tmp_path):
        with pytest.raises(JournalLocked, match="state_dir"):
            async with Journal(tmp_path):
                pass
    async with Journal(tmp_path) as journal:
        assert journal.usable


async def test_another_process_holds_it_only_while_it_lives(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
            import asyncio, pathlib, sys
            from agent.journal import Journal
            async def main():
                async with Journal(pathlib.Path(sys.argv[1])):
                    print("open", flush=True)
                    await asyncio.sleep(60)
            asyncio.run(main())
            """),
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(JournalLocked):
            async with Journal(tmp_path):
                pass
    finally:
        holder.kill()
        holder.communicate()
    async with Journal(tmp_path) as journal:
        assert journal.usable


@pytest.mark.parametrize("damage", ["not a database", "zeroed page", "directory in its place", "other version"])
async def test_a_damaged_journal_is_refused_with_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal.sqlite3"
    async with Journal(tmp_path) as journal:
        await asyncio.gather(*(journal.accept(entry(f"c{n}")) for n in range(500)))
    if damage == "not a database":
        path.write_bytes(b"this was a journal once" * 100)
    elif damage == "zeroed page":
        with path.open("r+b") as file:
            file.seek(4096 * 4)
            file.write(bytes(4096 * 4))
    elif damage == "directory in its place":
        path.unlink()
        path.mkdir()
    else:
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version = 99")
        db.close()
    with pytest.raises(JournalUnusable, match=r"move (it|the file) away") as caught:
        async with Journal(tmp_path):
            pass
    assert caught.value.retry == "operator"
    assert not [t for t in threading.enumerate() if t.name == "journal"]


async def test_a_full_disk_refuses_and_room_makes_it_work_again(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        await journal.accept(entry("before"))
        with largest_file(4096):
            results = await asyncio.gather(*(journal.accept(entry(f"c{n}")) for n in range(50)), return_exceptions=True)
            assert all(isinstance(result, JournalUnusable) for result in results)
            assert not journal.usable
        assert await journal.accept(entry("after")) is None
        assert journal.usable
        assert [e.id for e in await journal.unfinished()] == ["before", "after"]


async def test_a_fault_of_our_own_reaches_whoever_called_and_nobody_hangs(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        bad = entry("a")._replace(request=object())  # type: ignore[arg-type]
        async with asyncio.timeout(20):
            with pytest.raises(TypeError):
                await journal.accept(bad)
            assert await journal.accept(entry("a")) is None


async def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    async with journal:
        pass
    with pytest.raises(JournalUnusable, match="not open"):
        await journal.find("a")


async def test_closing_writes_what_was_queued_and_leaves_no_thread(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        queued = [asyncio.ensure_future(journal.accept(entry(f"c{n}"))) for n in range(100)]
    await asyncio.gather(*queued)
    assert not [t for t in threading.enumerate() if t.name == "journal"]
    async with Journal(tmp_path) as journal:
        assert len(await journal.unfinished()) == 100


async def test_a_finished_command_is_accepted_once_more_and_forgets_how_it_ended(tmp_path: Path) -> None:
    async with Journal(tmp_path, clock=lambda: 10.0) as journal:
        await journal.accept(entry("a"))
        await journal.reopen("a", 7.0)  # it has not ended: nothing to take back
        await journal.begin("a", 2.0)
        await journal.finish(ended("a", State.FAILED))
        await journal.reopen("a", 9.0)
        found = await journal.find("a")
        assert found is not None
        assert (found.state, found.accepted_at, found.started_at, found.answer) == (State.ACCEPTED, 9.0, None, None)
        assert [each.id for each in await journal.unfinished()] == ["a"]
        await journal.begin("a", 10.0)
        await journal.finish(ended("a"))
    async with Journal(tmp_path, clock=lambda: 10.0) as journal:
        found = await journal.find("a")
        assert found is not None
        assert found.told().state is State.SUCCEEDED
