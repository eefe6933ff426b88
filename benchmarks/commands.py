"""What a command costs apart from its work: accept, journal, dispatch, answer.

Every figure is of a no-op that is journalled twice on a real disk (accepted, ended), as any command is. "In flight" are
commands that run and have not ended; "waiting" are commands in the queue behind a lock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import aiohttp
import structlog
from rich.console import Console
from rich.table import Table

from agent.commands import Answer, Command, CreateStoragePool, Outcome, Ping, State
from agent.dispatcher import Dispatcher, Limits
from agent.journal import Journal
from agent.journal_file import Entry
from agent.locks import Claim
from benchmarks.harness import Verdict, at_most, conclude
from stores.contract import Progress
from stores.to import PrimaryDataStoreTO

IN_FLIGHT = 100
QUEUE = 10_000
WARM_UP = 20
POOL = PrimaryDataStoreTO(uuid="p", poolType="Filesystem")


class Busy:
    """Pools are held until the end of the run, or wait for the one lock; everything else succeeds at once."""

    def claims(self, command: Command) -> Sequence[Claim]:
        return [Claim("queue")] if (command.id or "").startswith("waits") else []

    async def execute(self, command: Command, token: str, progress: Progress) -> Outcome:
        if isinstance(command, CreateStoragePool) and not token.startswith("waits-quick"):
            await asyncio.Event().wait()
        return Outcome()

    async def settle(self, command: Command, token: str, *, give_up: bool) -> None:
        """Nothing is left of any of them."""


@dataclass(frozen=True)
class Figure:
    """Of one way to send no-ops, in ms."""

    name: str
    p50: float
    p99: float
    per_second: float


Send = Callable[[], Awaitable[object]]


async def in_turns(ways: Mapping[str, Send], count: int) -> list[Figure]:
    """One no-op after the other, each way in turns, so that what else the machine does hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(count + WARM_UP):
        for name, send in ways.items():
            started = time.perf_counter()
            await send()
            if number >= WARM_UP:
                times[name].append(time.perf_counter() - started)
    return [figure(name, found, sum(found)) for name, found in times.items()]


async def closed_loop(name: str, send: Send, count: int) -> Figure:
    """`IN_FLIGHT` callers, each of which sends its next no-op when the last one was answered."""
    times: list[float] = []

    async def caller() -> None:
        for _ in range(count):
            started = time.perf_counter()
            await send()
            times.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return figure(name, times, time.perf_counter() - started)


def figure(name: str, times: Sequence[float], in_all: float) -> Figure:
    return Figure(name, 1000 * median(times), 1000 * quantiles(times, n=100)[98], len(times) / in_all)


def sender(dispatcher: Dispatcher) -> Send:
    async def send() -> Answer:
        accepted = await dispatcher.submit(Ping())
        answer = await dispatcher.wait(accepted.id, 60)
        if not answer.result:
            raise RuntimeError(answer.wire())
        return answer

    return send


@asynccontextmanager
async def dispatching(directory: Path) -> AsyncIterator[Dispatcher]:
    directory.mkdir(exist_ok=True)
    limits = Limits(concurrency=2 * IN_FLIGHT, queue=2 * QUEUE)
    async with Journal(directory) as journal, Dispatcher(journal, Busy(), limits) as dispatcher:
        yield dispatcher


async def occupy(dispatcher: Dispatcher, count: int, prefix: str) -> None:
    await asyncio.gather(
        *(dispatcher.submit(CreateStoragePool(id=f"{prefix}-{number}", pool=POOL)) for number in range(count))
    )


@asynccontextmanager
async def over_http(directory: Path) -> AsyncIterator[Send]:
    """No-ops to a process of its own with commands in flight."""
    socket = directory / "api.sock"
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.commands", "--serve", str(directory)], stdout=subprocess.PIPE
    )
    try:
        if not server.stdout or not await asyncio.to_thread(server.stdout.readline):
            raise RuntimeError("the server did not start")
        connector = aiohttp.UnixConnector(str(socket), limit=IN_FLIGHT)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def send() -> None:
                async with session.post("http://agent/v1/commands?wait=60", json={"command": "Ping"}) as answer:
                    if not (await answer.json())["result"]:
                        raise RuntimeError(await answer.text())

            yield send
    finally:
        server.terminate()
        server.wait()


async def serve(directory: Path) -> None:
    """The API over a dispatcher with commands in flight, as a process of its own."""
    from agent.config import Config
    from agent.metrics import Metrics
    from agent.transports.contract import AgentStatus
    from agent.transports.http_api.route import Api
    from agent.transports.http_api.server import HttpApi

    config = Config.model_validate({"api": {"socket": directory / "api.sock"}})
    async with dispatching(directory / "http") as dispatcher:
        await occupy(dispatcher, IN_FLIGHT, "runs")

        def no_status() -> AgentStatus:
            raise RuntimeError("not asked for here")

        def no_explanation(asked: object) -> object:
            raise RuntimeError("not asked for here")

        api = Api(dispatcher, no_explanation, no_status, Metrics(), 30.0)  # type: ignore[arg-type]
        server = HttpApi(api, config.api)
        await server.start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


async def emptied(directory: Path, length: int) -> float:
    """Seconds for each command of a queue of that length, all behind one lock, from submission to the last end."""
    async with dispatching(directory) as dispatcher:
        started = time.perf_counter()
        await occupy(dispatcher, length, "waits-quick")
        while dispatcher.status().accepted + dispatcher.status().running:
            await asyncio.sleep(0.01)
        return (time.perf_counter() - started) / length


async def fill_journal(directory: Path, rows: int) -> None:
    """As after that many finished commands."""
    now = time.time()
    async with Journal(directory) as journal:
        for first in range(0, rows, 5000):
            ids = [f"old-{number}" for number in range(first, min(rows, first + 5000))]
            await asyncio.gather(*(journal.accept(Entry(i, "Ping", "{}", "00" * 32, now)) for i in ids))
            ended = (
                Answer.final(i, "Ping", State.SUCCEEDED, accepted_at=now, started_at=now, finished_at=now) for i in ids
            )
            await asyncio.gather(*(journal.finish(answer) for answer in ended))


def show(figures: Sequence[Figure]) -> None:
    table = Table(title="cost of a command", title_justify="left")
    for column in ("how", "p50 ms", "p99 ms", "commands/s"):
        table.add_column(column, justify="left" if column == "how" else "right")
    for figure in figures:
        table.add_row(figure.name, f"{figure.p50:.2f}", f"{figure.p99:.2f}", f"{figure.per_second:.0f}")
    Console().print(table)


async def measure(directory: Path, count: int, rows: int) -> tuple[list[Figure], list[Verdict]]:
    await fill_journal(directory / "old", rows)
    async with (
        dispatching(directory / "idle") as idle,
        dispatching(directory / "busy") as busy,
        dispatching(directory / "queue") as queued,
        dispatching(directory / "old") as old,
        over_http(directory) as http,
    ):
        await occupy(busy, IN_FLIGHT, "runs")
        before = resident_kib()
        await occupy(queued, QUEUE, "waits")
        memory = (resident_kib() - before) / QUEUE
        ways = {
            "in process, nothing else": sender(idle),
            f"in process, {IN_FLIGHT} in flight": sender(busy),
            f"in process, {QUEUE:,} waiting": sender(queued),
            f"in process, {rows:,} in the journal": sender(old),
            f"HTTP, {IN_FLIGHT} in flight": http,
        }
        figures = await in_turns(ways, count)
        crowds = [
            await closed_loop(f"in process, {IN_FLIGHT} callers at once", sender(idle), count // 10),
            await closed_loop(f"HTTP, {IN_FLIGHT} callers at once", http, count // 10),
        ]
    alone, in_flight, waiting, remembering, by_http = figures
    short, long = [], []
    for turn in range(3):
        short.append(await emptied(directory / f"short-{turn}", QUEUE // 10))
        long.append(await emptied(directory / f"long-{turn}", QUEUE))
    return [*figures, *crowds], [
        at_most(f"{in_flight.name}: p50, ms", in_flight.p50, 3),
        at_most(f"{by_http.name}: p50, ms", by_http.p50, 3),
        at_most(f"p50 {waiting.name}, by p50 with nothing else", waiting.p50 / alone.p50, 1.5),
        at_most(f"p50 {remembering.name}, by p50 with nothing else", remembering.p50 / alone.p50, 1.5),
        at_most(
            f"time per command to empty a queue of {QUEUE:,}, by one of {QUEUE // 10:,}",
            median(long) / median(short),
            1.5,
        ),
        at_most("memory of a waiting command, KiB", memory, 16),
    ]


def resident_kib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="no-ops for each figure")
    parser.add_argument("--rows", type=int, default=100_000, help="finished commands in the old journal")
    parser.add_argument("--disk", type=Path, default=Path.cwd(), help="a directory on a real disk")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if options.serve:
        asyncio.run(serve(options.serve))
        return 0
    with tempfile.TemporaryDirectory(dir=options.disk, prefix="commands-") as directory:
        figures, verdicts = asyncio.run(measure(Path(directory), options.count, options.rows))
    show(figures)
    conclude(verdicts, {}, None)
    if options.json:
        content = {"figures": [vars(f) for f in figures], "goals": [vars(v) for v in verdicts]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if all(verdict.met for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
