"""What a host knows: machines, checkpoints, jobs of its management service, records of operations."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.doubles.hyperv.paths import Volumes
from tests.doubles.hyperv.vhds import VhdError, Vhds

NEW, RUNNING, STOPPING, COMPLETED, TERMINATED, FAILED = 2, 4, 6, 7, 8, 10  # CIM_ConcreteJob.JobState
_SHARING_VIOLATION = 0x80070020


@dataclass(frozen=True)
class Drive:
    controller: str
    number: int
    location: int
    path: str | None


@dataclass
class Checkpoint:
    id: str
    name: str
    parent: str
    disks: list[Drive]


@dataclass
class Machine:
    name: str
    state: str = "Off"
    generation: int = 2
    disks: list[Drive] = field(default_factory=list)
    dvd_drives: list[Drive] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    current: str = ""
    """The checkpoint that it goes on from."""
    merging: int = 0


@dataclass
class Job:
    """`files`: that it has open."""

    files: tuple[str, ...]
    id: str = field(default_factory=lambda: str(uuid.uuid4()).upper())
    state: int = RUNNING
    percent: int = 0
    hresult: int = 0


class Model:
    """`let_jobs_end`: while it is not set, jobs and merges go on."""

    def __init__(self, volumes: Volumes) -> None:
        self.volumes = volumes
        self.vhds = Vhds(volumes)
        self.machines: dict[str, Machine] = {}
        self.records: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, Job] = {}
        self.let_jobs_end = asyncio.Event()
        self.let_jobs_end.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def add_machine(self, name: str, **told: Any) -> Machine:
        self.machines[name] = Machine(name, **told)
        return self.machines[name]

    def forget_jobs(self) -> None:
        """As after five minutes, or when the management service is started again: running ones end where they are."""
        for task in self._tasks:
            task.cancel()
        self.jobs.clear()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.vhds.close()

    def start_job(self, work: Callable[[], Awaitable[None]], *files: str) -> Job:
        job = Job(files)
        self.jobs[job.id] = job
        self._start(self._job(job, work))
        return job

    async def _job(self, job: Job, work: Callable[[], Awaitable[None]]) -> None:
        job.percent = 50
        await self.let_jobs_end.wait()
        if job.state == STOPPING:
            job.state = TERMINATED
            return
        try:
            await work()
            job.state, job.percent = COMPLETED, 100
        except VhdError as error:
            job.state, job.hresult = FAILED, error.hresult

    def stop_job(self, job: Job) -> None:
        """It ends by itself, some time later."""
        job.state = STOPPING
        self._start(self._stopped(job))

    async def _stopped(self, job: Job) -> None:
        await asyncio.sleep(0.02)
        if job.state == STOPPING:
            job.state = TERMINATED

    def later(self, work: Callable[[], Awaitable[None]]) -> None:
        async def when_allowed() -> None:
            await self.let_jobs_end.wait()
            await work()

        self._start(when_allowed())

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work, name="fake vmms")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -------------------------------------------------------------------------------------------------- who uses what

    async def files_of(self, path: str) -> set[str]:
        """The file, and those below it, in lower case."""
        try:
            return {one.path.lower() for one in await self.vhds.chain(path)}
        except VhdError:
            return {path.lower()}

    async def used_by(self, path: str) -> str | None:
        """Who has that file open: a machine that is not off, or a job."""
        for job in self.jobs.values():
            if job.state in (RUNNING, STOPPING) and path.lower() in {file.lower() for file in job.files}:
                return "a job"
        for machine in self.machines.values():
            if machine.state == "Off":
                continue
            for drive in machine.disks:
                if drive.path is not None and path.lower() in await self.files_of(drive.path):
                    return machine.name
        return None

    async def need_unused(self, path: str, cmdlet: str) -> None:
        if (user := await self.used_by(path)) is not None:
            raise VhdError(
                f"ObjectInUse,Microsoft.Vhd.PowerShell.Cmdlets.{cmdlet}", _SHARING_VIOLATION, f"{path}: used by {user}"
            )

    def children_of(self, path: str, files: dict[str, str | None]) -> list[str]:
        """Of `files`, path to parent, those that build on that one."""
        return [child for child, parent in files.items() if parent is not None and parent.lower() == path.lower()]

    def repoint(self, machine: Machine, old: str, new: str) -> None:
        """Whatever named the file `old` names `new`."""

        def moved(drive: Drive) -> Drive:
            return replace(drive, path=new) if drive.path is not None and drive.path.lower() == old.lower() else drive

        machine.disks = [moved(drive) for drive in machine.disks]
        for checkpoint in machine.checkpoints:
            checkpoint.disks = [moved(drive) for drive in checkpoint.disks]
