"""The same pool in a process of its own: `with process(folder) as pool:`, `pool.control("arm", where="rpc", ...)`.

So it outlives an agent that is killed, takes none of the test's event loop, and can itself be stopped and gone on with.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.doubles.xapi.controls import Controls
from tests.doubles.xapi.errors import Failure
from tests.doubles.xapi.pool import Access, running
from tests.doubles.xapi.settings import Settings

CONTROL = "control.sock"


@dataclass(frozen=True)
class Remote:
    """`process` may be sent signals: SIGSTOP is a pool that has stopped answering."""

    access: Access
    process: subprocess.Popen[bytes]
    folder: Path

    def control(self, name: str, /, **arguments: Any) -> Any:
        """What `Controls.name(**arguments)` returns."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.folder / CONTROL))
            client.sendall(json.dumps([name, arguments]).encode() + b"\n")
            with client.makefile("rb") as answer:
                told = json.loads(answer.readline())
        if "error" in told:
            raise RuntimeError(told["error"])
        return told["value"]


@contextmanager
def process(folder: Path, settings: Settings | None = None) -> Iterator[Remote]:
    """`python -m tests.doubles.xapi FOLDER`, until the context ends. `folder` has a short path: sockets are in it."""
    told = json.dumps(dataclasses.asdict(settings or Settings()))
    argv = [sys.executable, "-m", "tests.doubles.xapi", str(folder), told]
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert child.stdout is not None
        first = child.stdout.readline()
        if not first:
            raise RuntimeError(f"the pool ended with {child.wait()}")
        yield Remote(Access(**json.loads(first)), child, folder)
    finally:
        child.send_signal(signal.SIGCONT)
        child.terminate()
        child.communicate()


async def serve(folder: Path, settings: Settings) -> None:
    """The process itself: says on stdout how it can be reached, then serves until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with running(folder, settings) as pool:

        async def obey(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            name, arguments = json.loads(await reader.readline())
            writer.write(json.dumps(await _obeyed(pool.controls, name, arguments)).encode() + b"\n")
            await writer.drain()
            writer.close()

        listener = await asyncio.start_unix_server(obey, folder / CONTROL)
        print(json.dumps(dataclasses.asdict(pool.access)), flush=True)
        await ended.wait()
        listener.close()
        await listener.wait_closed()
        (folder / CONTROL).unlink()


async def _obeyed(controls: Controls, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"value": await getattr(controls, name)(**arguments)}
    except (Failure, ValueError, TypeError, AttributeError, OSError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
