"""What CloudStack's protocol costs: messages each way, memory of a long one, and how late pings are on a busy link.

The codec is measured from bytes inside TLS to models, and back: header, gzip where it is used, JSON, models. Messages are a
CopyCommand as a server sends it to deploy a template, its answer, and every command and answer there is, in turns. The
link is a real one, over TLS and loopback, to the server that the tests use, in this same process; and that of a whole daemon.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import structlog
from rich.console import Console
from rich.table import Table

from agent.transports.cloudstack import json_codec, wire
from agent.transports.cloudstack.connection import read
from agent.transports.cloudstack.models import Envelope, WireAnswer
from agent.transports.cloudstack.wire import Flag, FrameReader, Message, MessageReader, frame, slices
from benchmarks.cloudstack_daemon import busy_daemon
from benchmarks.harness import MIB, Verdict, at_least, at_most, conclude
from tests.doubles.cloudstack_role import ScriptedRole, linked
from tests.doubles.management_server.attached import API, AttachedAgent
from tests.doubles.management_server.authority import Authority
from tests.doubles.management_server.packets import Body
from tests.doubles.management_server.server import ManagementServer
from tests.wire.golden_messages import NAMES, message, text, tree

COPY = "CopyCommand-template-to-primary"
LARGEST = "the largest"  # shown, and no goal: there is one of its kind
COMMANDS, AT_ONCE, COPIES = 1000, 50, 8
INTERVAL_S = 1
LONG = 10 * MIB


def out(items: Sequence[Envelope]) -> list[bytes]:
    """Models to link frames, without their encryption."""
    data = wire.encode(Message(7, Flag.REQUEST, json_codec.encode(items), 1, 2, 2))
    return [frame(bytes(piece), follows=follows) for piece, follows in slices(data)]


def back(frames: Sequence[bytes]) -> Sequence[json_codec.Decoded]:
    """Link frames to models."""
    reader, messages = FrameReader(), MessageReader()
    for piece in frames:
        for found in reader.feed(piece):
            whole = messages.feed(found.payload, follows=found.follows)
            if whole is not None:
                received = read(whole)
                assert received is not None
                return received.items
    raise AssertionError("the message did not end")


def per_second(work: Callable[[], object], count: int) -> float:
    """The median of five runs, by the time of the processor: it does nothing else, and others may use the machine."""
    rates = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(count):
            work()
        rates.append(count / (time.process_time() - began))
    return median(rates)


def codec(count: int) -> dict[str, tuple[float, float]]:
    """Messages a second, written and read."""
    largest = max(NAMES, key=lambda name: len(text(name)))
    copied = next(name for name in NAMES if name.startswith("CopyCmdAnswer"))
    titles = {"a template's copy": [COPY], "its answer": [copied], "all": NAMES, LARGEST: [largest]}
    figures = {}
    for title, names in titles.items():
        items = [[message(name)] for name in names]
        each, every = itertools.cycle(items), itertools.cycle([out(one) for one in items])
        figures[title] = (
            per_second(lambda each=each: out(next(each)), count),  # type: ignore[misc]
            per_second(lambda every=every: back(next(every)), count),  # type: ignore[misc]
        )
    return figures


def memory() -> tuple[float, float]:
    """Peak of writing and of reading one long message, by its size."""
    answer = WireAnswer(result=True, details="x1" * (LONG // 2))
    tracemalloc.start()
    frames = out([answer])
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tracemalloc.start()
    back(frames)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return written / LONG, taken / LONG


async def lateness(directory: Path) -> float:
    """How much later than its interval the latest ping came, by the interval, with a queue of commands before the link."""
    async with (
        ManagementServer(Authority(), ping_interval=INTERVAL_S) as server,
        linked(server, state=directory, role=ScriptedRole()),
    ):
        agent = await server.agent()
        ((name, fields),) = tree(COPY)[0].items()
        copies = [asyncio.create_task(_ask(agent, name, fields, 600)) for _ in range(COPIES)]
        turns = asyncio.Semaphore(AT_ONCE - COPIES)

        async def one() -> None:
            async with turns:
                await _ask(agent, f"{API}GetStorageStatsCommand", {}, 0.2)

        await asyncio.gather(*(one() for _ in range(COMMANDS)))
        for copy in copies:
            copy.cancel()
        gaps = [after - before for before, after in itertools.pairwise(agent.pings)]
        return max(gaps) / INTERVAL_S - 1


async def _ask(agent: AttachedAgent, command: str, fields: Body, sleep_s: float) -> None:
    await agent.ask(command, fields | {"contextMap": {"sleep": str(sleep_s)}, "wait": 3600})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000, help="messages for each figure")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    figures = codec(options.count)
    written, taken = memory()
    with tempfile.TemporaryDirectory(prefix="cloudstack-") as directory:
        late = asyncio.run(lateness(Path(directory)))
        (Path(directory) / "daemon").mkdir()
        load = {"commands": COMMANDS, "at_once": AT_ONCE, "copies": COPIES, "interval_s": INTERVAL_S}
        busy, copied = asyncio.run(busy_daemon(Path(directory) / "daemon", **load))
    table = Table()
    for column in ("message", "written/s", "read/s"):
        table.add_column(column, justify="left" if column == "message" else "right")
    for title, (out_rate, in_rate) in figures.items():
        table.add_row(title, f"{out_rate:.0f}", f"{in_rate:.0f}")
    Console().print(table)
    verdicts: list[Verdict] = []
    for title, (out_rate, in_rate) in figures.items():
        if title == LARGEST:
            continue
        verdicts += [
            at_least(f"{title}: written a second", out_rate, 5000),
            at_least(f"{title}: read a second", in_rate, 5000),
        ]
    verdicts += [
        at_most("peak memory to write 10 MiB, by their size", written, 3),
        at_most("peak memory to read 10 MiB, by their size", taken, 3),
        at_most(f"latest ping with {AT_ONCE} of {COMMANDS} commands running, by the interval", late, 0.1),
        at_most(
            f"latest ping of a daemon, {COPIES} copies out of S3 beside ({copied} ended), by the interval", busy, 0.1
        ),
    ]
    conclude(verdicts, {}, None)
    if options.json:
        content = {"figures": figures, "goals": [vars(verdict) for verdict in verdicts]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if all(verdict.met for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
