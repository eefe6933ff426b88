"""A process that does one command on a Hyper-V pool, as the daemon would, and dies at a chosen step of it.

Steps are what reaches the share or the host: requests of SMB, and scripts. Told on standard input, a line of JSON each:

    {"config": {...}, "command": {...}, "token": "c-1", "die_at": 7}

answered by `{"died": true, "steps": 7}`. For each a child is forked, so that imports are done once.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from agent.commands import COMMAND
from agent.config import Config
from agent.execution import request_of
from agent.wiring import build
from hypervisors.contract import HypervisorType
from hypervisors.hyperv.psrp import PsrpPort
from hypervisors.operations import Operations
from hypervisors.verbs import (
    AttachIso,
    AttachVolume,
    Call,
    Copy,
    Create,
    Delete,
    DetachIso,
    DetachVolume,
    Request,
    Resize,
    Revert,
)
from stores.backends.smb_link import Link
from stores.contract import Silent

Body = dict[str, Any]
"""A command as it is sent."""


class Mortal:
    """An agent of that configuration, whose lives such a process gives."""

    def __init__(self, process: subprocess.Popen[str], config: Body) -> None:
        self._process = process
        self._config = config

    def die(self, command: Body, token: str, at: int) -> tuple[bool, int]:
        """Whether it died, and how many steps there were. `at` 0: it lives. Blocking."""
        told = {"config": self._config, "command": command, "token": token, "die_at": at}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["died"], answer["steps"]


@contextmanager
def parent() -> Iterator[subprocess.Popen[str]]:
    """Such a process, for as many configurations as are wanted."""
    argv = [sys.executable, "-m", "tests.doubles.mortal_hyperv"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


async def carried_out(operations: Operations, request: Request, token: str) -> object:
    """By the verb that it is of."""
    call = Call(token, HypervisorType.HYPERV, Silent())
    verbs: dict[type, Callable[..., Awaitable[object]]] = {
        Copy: operations.copy,
        Create: operations.create,
        Delete: operations.delete,
        Resize: operations.resize,
        Revert: operations.revert,
        AttachVolume: operations.attach_volume,
        DetachVolume: operations.detach_volume,
        AttachIso: operations.attach_iso,
        DetachIso: operations.detach_iso,
    }
    return await verbs[type(request)](call, request)


def request(command: Body) -> Request:
    asked = request_of(COMMAND.validate_python(command))
    assert asked is not None
    return asked


async def _live(told: Body) -> None:
    parts = build(Config.model_validate(told["config"]))
    try:
        await carried_out(parts.operations, request(told["command"]), told["token"])
    finally:
        await parts.aclose()


def _counted(die_at: int, tell: Callable[[], object]) -> None:
    """From now on, steps are counted, and the one of that number is the last that is begun."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        tell()
        if steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    run = PsrpPort.run

    def counting(send: Callable[..., Any]) -> Callable[..., Any]:
        def sending(*args: Any, **kwargs: Any) -> Any:
            sent = send(*args, **kwargs)
            step()
            return sent

        return sending

    async def running(self: PsrpPort, *args: Any, **kwargs: Any) -> Any:
        step()
        try:
            return await run(self, *args, **kwargs)
        finally:
            step()

    Link.send, Link.send_write = counting(Link.send), counting(Link.send_write)  # type: ignore[method-assign]
    PsrpPort.run = running  # type: ignore[method-assign]


def main() -> None:
    for line in sys.stdin:
        told = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _counted(told["die_at"], partial(os.write, writing, b"."))
            asyncio.run(_live(told))
            os._exit(0)
        os.close(writing)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reading, "rb") as told_by_child:
            steps = len(told_by_child.read())
        died = os.WIFSIGNALED(status)
        assert died or os.WEXITSTATUS(status) == 0
        print(json.dumps({"died": died, "steps": steps}), flush=True)


if __name__ == "__main__":
    main()
