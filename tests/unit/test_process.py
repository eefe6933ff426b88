"""The tool runner, with real processes: what they see, what they may, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.contract import GiB, KiB, MiB
from stores.errors import Retry
from stores.tools.output import QemuProgress, told_lines
from stores.tools.process import ToolFailed, ToolLimits, ToolMissing, ToolRunner, ToolTimeout, wrapped
from tests.processes import children

SHELL = "/bin/sh"
IGNORE_SIGTERM = "trap '' TERM; "


@pytest.fixture
def runner() -> ToolRunner:
    return ToolRunner(grace_s=0.3)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Not a child, not a descriptor more than before."""
    before = children(), sorted(os.listdir("/proc/self/fd"))
    yield
    assert (children(), sorted(os.listdir("/proc/self/fd"))) == before


async def pid_in(file: Path) -> int:
    """The number that a tool writes into `file` when it is under way."""
    while True:
        text = file.read_text() if file.exists() else ""
        if text.endswith("\n"):
            return int(text)
        await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether there is no such process, or only its entry: init has not looked yet.

    A process closes its pipes, by which we know of its end, a moment before the kernel shows it as ended.
    """
    give_up = time.monotonic() + 10
    while not ended(pid) and time.monotonic() < give_up:
        time.sleep(0.01)
    return ended(pid)


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_output_of_both_kinds_comes_back(runner: ToolRunner) -> None:
    result = await runner.run([SHELL, "-c", "echo out; echo err >&2"], deadline_s=30)
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


async def test_arguments_arrive_as_they_are(runner: ToolRunner) -> None:
    hostile = ["--version", "$(id)", "; rm -rf /", "a b", "", "ümläut", "\n", "*"]
    script = "import json, sys; print(json.dumps(sys.argv[1:]))"
    result = await runner.run([sys.executable, "-c", script, *hostile], deadline_s=30)
    assert json.loads(result.stdout) == hostile


async def test_the_environment_is_empty(runner: ToolRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    result = await runner.run(["env"], deadline_s=30)
    assert sorted(line.split(b"=")[0] for line in result.stdout.splitlines()) == [b"LC_ALL", b"PATH"]


async def test_a_tool_has_no_input_no_descriptors_and_its_own_session(runner: ToolRunner) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        script = textwrap.dedent(
            """
            import json, os, sys
            print(json.dumps([sys.stdin.read(), sorted(map(int, os.listdir("/proc/self/fd")))[:-1], os.getsid(0), os.getpid()]))
            """
        )
        result = await runner.run([sys.executable, "-c", script], deadline_s=30)
    finally:
        os.close(reader)
        os.close(writer)
    stdin, descriptors, session, pid = json.loads(result.stdout)
    assert stdin == ""
    assert descriptors == [0, 1, 2]
    assert session == pid


async def test_descriptors_are_passed_when_asked_for(runner: ToolRunner, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        result = await runner.run(["cat", f"/proc/self/fd/{descriptor}"], deadline_s=30, pass_fds=[descriptor])
    finally:
        os.close(descriptor)
    assert result.stdout == b"content"


async def test_limits_are_in_force(runner: ToolRunner) -> None:
    limits = ToolLimits(address_space=1 * GiB, cpu_s=7, file_size=5 * MiB)
    script = textwrap.dedent(
        """
        import resource as r
        print(r.getrlimit(r.RLIMIT_AS), r.getrlimit(r.RLIMIT_CPU), r.getrlimit(r.RLIMIT_FSIZE), r.getrlimit(r.RLIMIT_CORE))
        """
    )
    result = await runner.run([sys.executable, "-c", script], deadline_s=30, limits=limits)
    gib, file_size = 1 * GiB, 5 * MiB
    assert result.stdout.decode().strip() == f"{(gib, gib)} {(7, 8)} {(file_size, file_size)} {(0, 0)}"


async def test_too_much_processor_time_is_said_to_be_that(runner: ToolRunner) -> None:
    with pytest.raises(ToolFailed, match="processor time"):
        await runner.run([SHELL, "-c", "while :; do :; done"], deadline_s=30, limits=ToolLimits(cpu_s=1))


async def test_too_large_a_file_is_an_error(runner: ToolRunner, tmp_path: Path) -> None:
    target = tmp_path / "target"
    limits = ToolLimits(file_size=1 * MiB)
    with pytest.raises(ToolFailed):
        await runner.run(["dd", "if=/dev/zero", f"of={target}", "bs=64k", "count=64"], deadline_s=30, limits=limits)
    assert target.stat().st_size <= 1 * MiB


async def test_failure_tells_the_tool_its_code_and_its_last_words(runner: ToolRunner) -> None:
    script = "for i in $(seq 50); do echo line $i >&2; done; exit 3"
    with pytest.raises(ToolFailed) as caught:
        await runner.run([SHELL, "-c", script], deadline_s=30)
    assert caught.value.details["tool"] == SHELL
    assert caught.value.details["exit_code"] == 3
    assert "line 50" in caught.value.message
    assert "line 5 " not in caught.value.message


async def test_death_by_signal_is_told(runner: ToolRunner) -> None:
    with pytest.raises(ToolFailed, match="signal 6") as caught:
        await runner.run([SHELL, "-c", "kill -ABRT $$"], deadline_s=30)
    assert caught.value.details["exit_code"] == -signal.SIGABRT


async def test_a_missing_tool_names_its_package(runner: ToolRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolMissing, match="not installed") as caught:
        await runner.run(["no-such-tool-anywhere"], deadline_s=30)
    assert caught.value.retry is Retry.OPERATOR
    monkeypatch.setattr("stores.tools.process.PACKAGES", {"no-such-tool-anywhere": "a-package"})
    with pytest.raises(ToolMissing, match="a-package") as caught:
        await runner.run(["no-such-tool-anywhere"], deadline_s=30)
    assert caught.value.details["package"] == "a-package"


@pytest.mark.parametrize("argv", [[], ["true", "a\0b"], ["tr\0ue"]])
async def test_an_argv_that_cannot_be_is_refused(runner: ToolRunner, argv: list[str]) -> None:
    with pytest.raises(ValueError, match="argv"):
        await runner.run(argv, deadline_s=30)


async def test_deadline_stops_the_tool(runner: ToolRunner, tmp_path: Path) -> None:
    script = f"echo $$ > {tmp_path}/pid; exec sleep 1000"
    with pytest.raises(ToolTimeout) as caught:
        await runner.run([SHELL, "-c", script], deadline_s=0.5)
    assert caught.value.details == {"tool": SHELL, "deadline_s": 0.5}
    assert gone(await pid_in(tmp_path / "pid"))


@pytest.mark.parametrize("stubborn", [False, True], ids=["obeys SIGTERM", "ignores SIGTERM"])
async def test_cancel_leaves_no_process(runner: ToolRunner, tmp_path: Path, stubborn: bool) -> None:
    trap = IGNORE_SIGTERM if stubborn else ""
    script = f"{trap}sleep 1000 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/pid; wait; wait"
    task = asyncio.create_task(runner.run([SHELL, "-c", script], deadline_s=None))
    pids = [await pid_in(tmp_path / "pid"), await pid_in(tmp_path / "child")]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(map(gone, pids))


async def test_cancel_while_the_tool_starts_leaves_no_process(runner: ToolRunner, tmp_path: Path) -> None:
    """The fork has happened, the loop has not yet seen it: the tool and its child run already."""
    script = f"sleep 1000 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/pid; wait"
    for _ in range(20):
        task = asyncio.create_task(runner.run([SHELL, "-c", script], deadline_s=None))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.001)  # holds the loop up, as a busy machine does
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gone(int((tmp_path / "child").read_text()))
        assert gone(int((tmp_path / "pid").read_text()))
        (tmp_path / "pid").unlink()


async def test_sigterm_comes_first_so_that_a_tool_can_clean_up(runner: ToolRunner, tmp_path: Path) -> None:
    script = f"trap 'echo bye > {tmp_path}/bye; exit 0' TERM; echo $$ > {tmp_path}/pid; sleep 1000 & wait"
    task = asyncio.create_task(ToolRunner(grace_s=30).run([SHELL, "-c", script], deadline_s=None))
    await pid_in(tmp_path / "pid")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tmp_path / "bye").read_text() == "bye\n"


async def test_a_second_cancel_does_not_wait_for_the_grace(tmp_path: Path) -> None:
    script = f"{IGNORE_SIGTERM} echo $$ > {tmp_path}/pid; while :; do sleep 1; done"
    task = asyncio.create_task(ToolRunner(grace_s=1000).run([SHELL, "-c", script], deadline_s=None))
    pid = await pid_in(tmp_path / "pid")
    task.cancel()
    await asyncio.sleep(0.05)
    assert not ended(pid)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(pid)


async def test_cancel_at_any_moment_of_the_start(runner: ToolRunner) -> None:
    for steps in range(12):
        task = asyncio.create_task(runner.run(["sleep", "1000"], deadline_s=None))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("stream", [1, 2])
async def test_a_flood_of_output_ends_the_tool(runner: ToolRunner, stream: int) -> None:
    with pytest.raises(ToolFailed, match="more than 65536 bytes"):
        await runner.run([SHELL, "-c", f"exec yes >&{stream}"], deadline_s=None, limits=ToolLimits(output=64 * KiB))


async def test_output_up_to_the_limit_passes(runner: ToolRunner) -> None:
    limits = ToolLimits(output=100_000)
    result = await runner.run(["head", "-c", "100000", "/dev/zero"], deadline_s=30, limits=limits)
    assert result.stdout == bytes(100_000)
    with pytest.raises(ToolFailed):
        await runner.run(["head", "-c", "100001", "/dev/zero"], deadline_s=30, limits=limits)


async def test_a_flood_while_being_stopped_does_not_block_the_stop(runner: ToolRunner, tmp_path: Path) -> None:
    script = f"{IGNORE_SIGTERM} echo $$ > {tmp_path}/pid; while :; do echo 0123456789 >&2; done"
    task = asyncio.create_task(runner.run([SHELL, "-c", script], deadline_s=None, limits=ToolLimits(output=GiB)))
    pid = await pid_in(tmp_path / "pid")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(pid)


def test_kill_9_of_the_agent_kills_the_tool(tmp_path: Path) -> None:
    agent = textwrap.dedent(
        f"""
        import asyncio
        from stores.tools.process import ToolRunner
        asyncio.run(ToolRunner().run(["/bin/sh", "-c", "echo $$ > {tmp_path}/pid; exec sleep 1000"], deadline_s=None))
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", agent], cwd=Path(__file__).parents[2])
    try:
        pid = asyncio.run(pid_in(tmp_path / "pid"))
    finally:
        parent.kill()
        parent.wait()
    assert gone(pid)


# ------------------------------------------------------------------------------------------------------- helpers


async def test_a_helper_works_until_its_context_ends(runner: ToolRunner, tmp_path: Path) -> None:
    script = f"trap 'echo bye > {tmp_path}/bye; exit 0' TERM; sleep 1000 & echo $$ > {tmp_path}/pid; wait"
    async with ToolRunner(grace_s=30).running([SHELL, "-c", script]) as tool:
        pid = await pid_in(tmp_path / "pid")
        assert await tool.ended(within_s=0) is None
        assert not ended(pid)
    assert gone(pid)
    assert (tmp_path / "bye").exists(), "SIGTERM comes first"


async def test_a_helper_that_ends_by_itself_says_why(runner: ToolRunner) -> None:
    async with runner.running([SHELL, "-c", "echo trouble >&2; exit 3"]) as tool:
        failure = await tool.ended()
    assert failure is not None
    assert (failure.details["exit_code"], failure.details["stderr"]) == (3, "trouble")


async def test_a_helpers_output_neither_stops_it_nor_grows(runner: ToolRunner) -> None:
    script = "dd if=/dev/zero bs=1M count=8 status=none; dd if=/dev/zero bs=1M count=8 status=none >&2; echo last >&2"
    async with runner.running([SHELL, "-c", script]) as tool:
        failure = await tool.ended(within_s=60)
    assert failure is not None
    assert failure.details["exit_code"] == 0
    assert str(failure.details["stderr"]).endswith("last")


@pytest.mark.parametrize("stubborn", [False, True], ids=["obeys SIGTERM", "ignores SIGTERM"])
async def test_a_cancelled_helper_leaves_no_process(runner: ToolRunner, tmp_path: Path, stubborn: bool) -> None:
    trap = IGNORE_SIGTERM if stubborn else ""
    script = f"{trap}sleep 1000 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/pid; wait; wait"

    async def work() -> None:
        async with runner.running([SHELL, "-c", script]) as tool:
            await tool.ended()

    task = asyncio.create_task(work())
    pids = [await pid_in(tmp_path / "pid"), await pid_in(tmp_path / "child")]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(map(gone, pids))


async def test_a_helper_that_is_not_installed(runner: ToolRunner) -> None:
    with pytest.raises(ToolMissing):
        async with runner.running(["no-such-tool"]):
            pass


async def test_progress_of_a_real_conversion(runner: ToolRunner, tmp_path: Path) -> None:
    (tmp_path / "image.raw").write_bytes(os.urandom(16 * MiB))
    told: list[float] = []
    result = await runner.run(
        ["qemu-img", "convert", "-p", "-f", "raw", "-O", "qcow2", f"{tmp_path}/image.raw", f"{tmp_path}/image.qcow2"],
        deadline_s=60,
        on_progress=told.append,
    )
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert result.stdout == b""


@given(
    fractions=st.lists(st.integers(0, 10_000), min_size=1, max_size=20),
    cuts=st.lists(st.integers(0, 1000), max_size=10),
)
def test_progress_is_read_however_the_output_is_cut(fractions: list[int], cuts: list[int]) -> None:
    text = b"".join(b"    (%.2f/100%%)\r" % (fraction / 100) for fraction in fractions) + b"\n"
    edges = sorted({0, len(text), *(cut % len(text) for cut in cuts)})
    told: list[float] = []
    progress = QemuProgress(told.append)
    for start, end in itertools.pairwise(edges):
        progress.feed(text[start:end])
    assert told[-1] == pytest.approx(fractions[-1] / 10_000)
    assert {round(value * 10_000) for value in told} <= set(fractions)


@given(st.binary(max_size=200))
def test_progress_ignores_what_is_none(data: bytes) -> None:
    told: list[float] = []
    QemuProgress(told.append).feed(data)
    assert all(0 <= value <= 1 for value in told)


def test_words_of_a_tool_carry_no_secrets_and_no_control_characters() -> None:
    url = b"https://user:pa55@host/image?X-Amz-Signature=abcdef"
    text = b"\x1b[31mqemu-img: Could not open '" + url + b"': denied\nat \xff/some/path\n"
    told = told_lines(text)
    assert "pa55" not in told
    assert "abcdef" not in told
    assert "/some/path" in told
    assert told.isprintable()


@given(st.binary(max_size=5000))
def test_words_of_a_tool_are_always_short_and_printable(stderr: bytes) -> None:
    told = told_lines(stderr)
    assert len(told) <= 1024
    assert told.isprintable()


def test_limits_never_exceed_what_the_agent_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (MiB, MiB))
    assert f"--as={MiB}:{MiB}" in wrapped(["true"], ToolLimits(address_space=GiB))
