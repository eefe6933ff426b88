"""Contestants side by side: run in turns, each a process of its own, judged by the median and by ratios inside one run.

Numbers of different machines or moments are not comparable; the ratios of one table are.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

MIB = 1024 * 1024
WIDTH = 120
LIMIT_S = 180.0
"""A contestant that takes longer has stalled (`qemu-img convert` from a URL sometimes waits for ever): it is killed."""


@dataclass(frozen=True)
class Contestant:
    """A command line. One that is a Python program may report its own figures as the last line of its output, taken after
    its imports (`measured`), as a daemon that runs already would need; otherwise the whole process counts."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One run. `cpu_s` is user and system time of the process and of all its children."""

    wall_s: float
    cpu_s: float
    peak_rss_mib: float
    extra: Mapping[str, float] = field(default_factory=dict)
    stalled: bool = False


@dataclass(frozen=True)
class Row:
    """Medians of a contestant's runs. Runs that stalled are counted apart, and for the medians took all of `LIMIT_S`."""

    name: str
    runs: int
    stalled: int
    wall_s: float
    wall_spread_s: tuple[float, float]
    cpu_s: float
    peak_rss_mib: float
    extra: Mapping[str, float]


class ContestantFailed(Exception):
    """A contestant did not do what it is timed for: its figures would mean nothing."""


def run_once(contestant: Contestant) -> Sample:
    """`ContestantFailed` unless it exits 0, or has to be killed after `LIMIT_S`."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            contestant.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={**os.environ, **contestant.env},
            start_new_session=True,
        )
        with killed_after(process.pid, LIMIT_S) as over, watching_memory(process.pid) as memory:
            _, status, usage = os.wait4(process.pid, 0)
            wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if over.is_set():
            return Sample(wall_s, usage.ru_utime + usage.ru_stime, memory.peak_mib, stalled=True)
        if process.returncode != 0:
            said = errors.read()[-2000:].decode(errors="replace")
            raise ContestantFailed(f"{contestant.name} exited {process.returncode}: {said}")
        last = output.read().splitlines()[-1:]
    if last and last[0].startswith(b'{"wall_s"'):
        said_itself = json.loads(last[0])
        return Sample(said_itself.pop("wall_s"), said_itself.pop("cpu_s"), memory.peak_mib, said_itself)
    return Sample(wall_s, usage.ru_utime + usage.ru_stime, memory.peak_mib)


@contextmanager
def killed_after(session: int, limit_s: float) -> Iterator[threading.Event]:
    """Kills a session's processes when the time is over; the event tells whether that was so."""
    over = threading.Event()

    def kill() -> None:
        over.set()
        os.killpg(session, signal.SIGKILL)

    timer = threading.Timer(limit_s, kill)
    timer.start()
    try:
        yield over
    finally:
        timer.cancel()
        timer.join()


class Memory:
    peak_mib = 0.0


@contextmanager
def watching_memory(pid: int) -> Iterator[Memory]:
    """The kernel's own high-water mark of a process, looked at twenty times a second. `ru_maxrss` would not do: a child
    inherits what its parent had before it became another program."""
    memory, over = Memory(), threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            try:
                text = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                return
            for line in text.splitlines():
                if line.startswith("VmHWM:"):
                    memory.peak_mib = int(line.split()[1]) / 1024

    watcher = threading.Thread(target=watch, name="memory-watch")
    watcher.start()
    try:
        yield memory
    finally:
        over.set()
        watcher.join()


def measured(work: Callable[[], Mapping[str, float]]) -> None:
    """For contestants in Python: runs `work` and prints its figures as `run_once` wants them."""
    before, started = _cpu_s(), time.perf_counter()
    extra = work()
    figures = {"wall_s": time.perf_counter() - started, "cpu_s": _cpu_s() - before, **extra}
    sys.stdout.write(json.dumps(figures) + "\n")


def _cpu_s() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def compare(
    contestants: Sequence[Contestant], *, rounds: int, after: Callable[[Contestant, Sample], None]
) -> list[Row]:
    """Each contestant once a round, in a different order every round; `after` checks and removes what a run left."""
    samples: dict[str, list[Sample]] = {contestant.name: [] for contestant in contestants}
    for turn in range(rounds):
        shift = turn % len(contestants)
        for contestant in [*contestants[shift:], *contestants[:shift]]:
            sample = run_once(contestant)
            samples[contestant.name].append(sample)
            after(contestant, sample)
    return [_row(name, found) for name, found in samples.items()]


def _row(name: str, samples: Sequence[Sample]) -> Row:
    walls = [sample.wall_s for sample in samples]
    return Row(
        name,
        len(samples),
        sum(sample.stalled for sample in samples),
        median(walls),
        (min(walls), max(walls)),
        median(sample.cpu_s for sample in samples),
        max(sample.peak_rss_mib for sample in samples),
        {key: median(sample.extra[key] for sample in samples if key in sample.extra) for key in samples[0].extra},
    )


def show(title: str, rows: Sequence[Row], *, size: int) -> None:
    """A table on the terminal. Ratios are to the first row: above 1 means that the first row is better."""
    table = Table(title=title, title_justify="left")
    for column in ("contestant", "MB/s", "s (min-max)", "time ratio", "CPU s/GiB", "CPU ratio", "peak RSS MiB"):
        table.add_column(column, justify="left" if column == "contestant" else "right")
    ours = rows[0]
    for row in rows:
        table.add_row(
            row.name + (f" (stalled {row.stalled} of {row.runs})" if row.stalled else ""),
            f"{size / row.wall_s / 1e6:.0f}",
            f"{row.wall_s:.2f} ({row.wall_spread_s[0]:.2f}-{row.wall_spread_s[1]:.2f})",
            f"{row.wall_s / ours.wall_s:.2f}",
            f"{row.cpu_s / (size / (1024 * MIB)):.2f}",
            f"{row.cpu_s / ours.cpu_s:.2f}",
            f"{row.peak_rss_mib:.0f}",
        )
    Console(width=WIDTH).print(table)


@dataclass
class Verdict:
    """One goal: what was measured, what it had to be, whether it is."""

    goal: str
    measured: float
    required: str
    met: bool


def at_least(goal: str, measured: float, limit: float) -> Verdict:
    return Verdict(goal, round(measured, 3), f">= {limit:g}", measured >= limit)


def at_most(goal: str, measured: float, limit: float) -> Verdict:
    return Verdict(goal, round(measured, 3), f"<= {limit:g}", measured <= limit)


def conclude(verdicts: Sequence[Verdict], tables: Mapping[str, Sequence[Row]], output: Path | None) -> None:
    """Prints the verdicts; writes everything as JSON to `output`, where there is one."""
    table = Table(title="goals", title_justify="left")
    for column in ("goal", "measured", "required", ""):
        table.add_column(column)
    for verdict in verdicts:
        table.add_row(verdict.goal, f"{verdict.measured:g}", verdict.required, "met" if verdict.met else "MISSED")
    Console(width=WIDTH).print(table)
    if output is not None:
        content = {
            "goals": [asdict(verdict) for verdict in verdicts],
            "tables": {title: [asdict(row) for row in rows] for title, rows in tables.items()},
        }
        output.write_text(json.dumps(content, indent=2) + "\n")
