"""Runs a tool: fixed argv, no shell, an empty environment, limits, a deadline; nothing of it is left afterwards.

A tool is started through util-linux's `setpriv` and `prlimit`, which exec into it (the process id stays the same). Both
settings belong between fork and exec, and `preexec_fn`, the other way to get there, can deadlock in a process with threads.
`setpriv --pdeathsig KILL` lets the kernel kill the tool when the thread that started it ends: that is the event loop's
thread, so a tool does not outlive an agent that is killed with -9.

There is no limit on processes: RLIMIT_NPROC counts all processes of the user, not those of one tool.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType

from stores.contract import GiB, KiB, MiB
from stores.errors import Retry, StorageError
from stores.tools.output import Collected, QemuProgress, Tail, told_lines
from stores.uninterrupted import uninterrupted

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = MappingProxyType({"PATH": SEARCH_PATH, "LC_ALL": "C"})
PACKAGES = MappingProxyType(
    {
        "blkdiscard": "util-linux",
        "lvm": "lvm2",
        "prlimit": "util-linux",
        "qemu-img": "qemu-utils",
        "qemu-nbd": "qemu-utils",
        "setpriv": "util-linux",
    }
)
"""Which Debian package has a tool."""

_CHUNK = 64 * KiB


class ToolError(StorageError):
    """Base of what goes wrong with a tool."""


class ToolFailed(ToolError):
    """The tool ended with an error or by a signal, or wrote more than it may.

    Details: `tool`, `exit_code` (negative: the signal's number), `stderr` (its last lines).
    """


class ToolTimeout(ToolError):
    """The tool was stopped at its deadline: details carry `tool` and `deadline_s`."""

    retry = Retry.YES


class ToolMissing(ToolError):
    """The tool is not installed: details carry `tool` and `package`, the Debian package that has it, where known."""

    retry = Retry.OPERATOR


@dataclass(frozen=True, slots=True)
class ToolLimits:
    """Resource limits of one run, in bytes and seconds. None: what the agent itself has."""

    address_space: int | None = 4 * GiB
    """`qemu-img convert -m 16` was seen to abort at 1 GiB and to pass at 2: each of its threads reserves space."""
    cpu_s: int | None = None
    file_size: int | None = None
    output: int = 1 * MiB
    """For standard output and standard error, each."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool wrote before it ended with success."""

    stdout: bytes
    stderr: bytes


class ToolRunner:
    """Runs tools as children of this process. One for all; it holds no state."""

    def __init__(self, *, grace_s: float = 5.0) -> None:
        """`grace_s`: how long a tool that must end has between SIGTERM and SIGKILL."""
        self._grace_s = grace_s

    async def run(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float | None,
        limits: ToolLimits = ToolLimits(),
        on_progress: Callable[[float], None] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> ToolResult:
        """Run `argv` to its end, with nothing to read from and no descriptors but `pass_fds`.

        `argv[0]` is a plain name, looked up in the system's directories, or an absolute path. argv is visible to every
        user of the host: never a secret in it. `on_progress` gets the fraction done, 0 to 1, from what `qemu-img -p`
        prints; standard output is then not collected.

        `ToolMissing`, `ToolFailed`, `ToolTimeout`; ValueError for an argv that no process can have. However this call ends,
        cancelled at any moment included, the tool and whatever it started in its process group has ended before.
        """
        command = wrapped(argv, limits)
        process = await self._start(command, pass_fds)
        progress = QemuProgress(on_progress) if on_progress else None
        stdout, stderr = Collected(limits.output), Collected(limits.output)
        ended = False
        try:
            async with asyncio.timeout(deadline_s) as deadline, asyncio.TaskGroup() as group:
                group.create_task(_pump(process, process.stdout, progress or stdout))
                group.create_task(_pump(process, process.stderr, stderr))
                status = await process.wait()
            ended = True
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise ToolTimeout(
                f"{argv[0]} was stopped because it had not ended after {deadline_s} s",
                tool=argv[0],
                deadline_s=deadline_s,
            ) from error
        finally:
            if not ended:
                await self._stop(process, self._grace_s)
        if status != 0 or stdout.overflowed or stderr.overflowed:
            raise _failure(argv[0], status, stderr.data, limits, flooded=stdout.overflowed or stderr.overflowed)
        return ToolResult(bytes(stdout.data), bytes(stderr.data))

    @asynccontextmanager
    async def running(
        self, argv: Sequence[str], *, limits: ToolLimits = ToolLimits(), pass_fds: Sequence[int] = ()
    ) -> AsyncIterator[RunningTool]:
        """`argv` at work for as long as the context lasts, started as `run` does. What it writes is read away, but for the last
        lines.

        `ToolMissing`; ValueError for an argv that no process can have. When the context ends, in whichever way, the tool and
        its process group are stopped, and have ended before this does. An earlier end disturbs nobody by itself: see
        `RunningTool`.
        """
        process = await self._start(wrapped(argv, limits), pass_fds)
        tail = Tail()
        watched = asyncio.create_task(_watch(process, tail))
        try:
            yield RunningTool(argv[0], process, watched, tail, limits)
        finally:
            await self._stop(process, self._grace_s, watched)

    async def _start(self, command: Sequence[str], pass_fds: Sequence[int]) -> asyncio.subprocess.Process:
        """Not to be interrupted: cancelled after the fork, asyncio kills the tool alone and then waits for its pipes, which
        the tool's children may hold open for ever (seen with Python 3.11 on a busy machine)."""
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd="/",
                env=dict(ENVIRONMENT),
                start_new_session=True,
                pass_fds=pass_fds,
            )
        )
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            grace_s = self._grace_s
            try:
                await uninterrupted(asyncio.wait([starting]))
            except asyncio.CancelledError:
                grace_s = 0  # asked twice
            if starting.exception() is None:
                await self._stop(starting.result(), grace_s)
            raise

    async def _stop(
        self, process: asyncio.subprocess.Process, grace_s: float, watched: asyncio.Task[None] | None = None
    ) -> None:
        """SIGTERM, a while, SIGKILL; returns when the process is reaped and its pipes are closed. `watched` is who reads them
        already, and waits for that."""
        rest = watched or asyncio.create_task(_drain(process))
        if rest.done():
            return  # its number may be somebody else's by now
        _signal(process, signal.SIGTERM)
        try:
            await asyncio.wait({rest}, timeout=grace_s)
        finally:
            if not rest.done():
                _signal(process, signal.SIGKILL)
            await _finished(rest)


class RunningTool:
    """A tool at work."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        watched: asyncio.Task[None],
        tail: Tail,
        limits: ToolLimits,
    ) -> None:
        """For `ToolRunner.running`."""
        self._name = name
        self._process = process
        self._watched = watched
        self._tail = tail
        self._limits = limits

    async def ended(self, within_s: float | None = None) -> ToolFailed | None:
        """Waits for the tool's end, and tells how it came about; None when it is still at work after `within_s` seconds."""
        await asyncio.wait([self._watched], timeout=within_s)
        status = self._process.returncode
        if not self._watched.done() or status is None:
            return None
        return _failure(self._name, status, self._tail.data, self._limits, flooded=False)


def wrapped(argv: Sequence[str], limits: ToolLimits) -> list[str]:
    """The command that execs into `argv` under `limits`."""
    if not argv or any("\0" in argument for argument in argv):
        raise ValueError("an argv has at least one element, and no NUL in any")
    options = [
        *_limit("--as", limits.address_space, resource.RLIMIT_AS),
        *_limit("--cpu", limits.cpu_s, resource.RLIMIT_CPU, spare=1),
        *_limit("--fsize", limits.file_size, resource.RLIMIT_FSIZE),
        "--core=0",
    ]
    return [
        *(_found("setpriv"), "--pdeathsig", "KILL", "--no-new-privs", "--"),
        *(_found("prlimit"), *options, "--"),
        *(_found(argv[0]), *argv[1:]),
    ]


def _limit(option: str, value: int | None, which: int, *, spare: int = 0) -> list[str]:
    """Never more than the agent's own hard limit, which only root could raise.

    `spare`: how much the hard limit is above the soft one. Where they are equal, the kernel sends SIGKILL for processor time
    and not the SIGXCPU by which we know why.
    """
    if value is None:
        return []
    most = resource.getrlimit(which)[1]
    soft, hard = (number if most == resource.RLIM_INFINITY else min(number, most) for number in (value, value + spare))
    return [f"{option}={soft}:{hard}"]


def _found(tool: str) -> str:
    path = shutil.which(tool, path=SEARCH_PATH)
    if path is None:
        package = PACKAGES.get(tool)
        raise ToolMissing(
            f"{tool} is needed and not installed" + (f": install the package {package}" if package else ""),
            tool=tool,
            package=package,
        )
    return path


async def _watch(process: asyncio.subprocess.Process, tail: Tail) -> None:
    """Until the process has ended and its pipes are closed."""
    async with asyncio.TaskGroup() as group:
        for stream in (process.stdout, process.stderr):
            group.create_task(_pump(process, stream, tail))
    await process.wait()


async def _pump(
    process: asyncio.subprocess.Process, stream: asyncio.StreamReader | None, into: Collected | QemuProgress | Tail
) -> None:
    assert stream is not None
    while data := await stream.read(_CHUNK):
        into.feed(data)
        if into.overflowed:
            _signal(process, signal.SIGKILL)


async def _drain(process: asyncio.subprocess.Process) -> None:
    """Until both pipes are closed: asyncio takes a process for ended only then, and stops reading pipes nobody empties."""
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        while await stream.read(_CHUNK):
            pass
    await process.wait()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """To the whole process group, of which the tool is the leader: also when only its children are left.

    Called only while a pipe of the group is open: its number belongs to nobody else, or was given back a moment ago, and
    the kernel goes through all others before it gives one out again.
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


async def _finished(task: asyncio.Task[None]) -> None:
    """Wait for `task` to its end through any number of cancellations, and only then be cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


def _failure(tool: str, status: int, stderr: bytes | bytearray, limits: ToolLimits, *, flooded: bool) -> ToolFailed:
    told = told_lines(bytes(stderr))
    if flooded:
        what = f"was killed because it wrote more than {limits.output} bytes"
    elif status == -signal.SIGXCPU:
        what = f"was killed because it used more than {limits.cpu_s} s of processor time"
    elif status < 0:
        what = f"was killed by signal {-status} ({signal.strsignal(-status)})"
    else:
        what = f"ended with exit code {status}"
    return ToolFailed(f"{tool} {what}" + (f": {told}" if told else ""), tool=tool, exit_code=status, stderr=told)
