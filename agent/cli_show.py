"""How answers look to people. Results go to standard output, progress to standard error."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from agent.cli_client import Json
from agent.cli_exit import say

if TYPE_CHECKING:  # imported where something is drawn
    from rich.console import Console

_ENVELOPE = ("id", "command", "state", "result", "error", "accepted_at", "started_at", "finished_at", "progress")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SIZES = ("size", "physicalSize", "newSize", "usedBytes", "capacityBytes", "availableBytes")


def size(count: float) -> str:
    """Bytes in the largest unit that leaves at least one."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def when(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def show_status(status: Json) -> None:
    say(f"storage-agent {status['version']} ({status['hypervisor']}): {_readiness(status)}")
    queue = f"waiting {status['waiting']} (queue limit {status['queue_limit']})"
    for pool in status.get("host_pools", ()):
        say(f"hosts {pool['name']}: {_reach(pool)}")
    say(f"running {status['running']} of {status['concurrency']}, {queue}, up since {when(status['started_at'])}")


def _reach(pool: Json) -> str:
    if pool["coordinator"]:
        return f"logged in at {pool['coordinator']}"
    return f"not logged in: {pool['problem']}" if pool["problem"] else "not needed yet"


def _readiness(status: Json) -> str:
    if status["ready"]:
        return "ready"
    if not status["accepting"]:
        return "not ready: stopping"
    return "not ready: " + ("draining" if status["draining"] else "journal unusable")


def show_answers(answers: Iterable[Json]) -> None:
    """The newest first, as they come."""
    show_table(
        ("ID", "COMMAND", "STATE", "ACCEPTED", "TOOK", "ERROR"),
        (
            (
                a["id"],
                a["command"],
                a["state"],
                when(a["accepted_at"]),
                _took(a),
                (a.get("error") or {}).get("kind", ""),
            )
            for a in answers
        ),
    )


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """As wide as it needs to be on a pipe."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 240, highlight=False, markup=False).print(table)


def show_answer(answer: Json) -> None:
    """One command: its state, and what it gave back."""
    say(
        f"command {answer['id']} {answer['command']}: {answer['state']}"
        + (f" in {_took(answer)}" if _took(answer) else "")
    )
    progress = answer.get("progress")
    if progress:
        say(f"  {_progress(progress)}")
    error = answer.get("error")
    if error:
        say(f"  {error['kind']} (retryable: {error['retryable']}): {error['message']}")
    for name, value in answer.items():
        if name not in _ENVELOPE:
            say(f"  {name}: {_value(name, value)}")


def show_explanation(explanation: Any) -> None:
    """Both sides of the negotiation (`hypervisors.operations.Explanation`)."""
    say(f"{explanation.operation} on {explanation.hypervisor}")
    for name, side in (("source", explanation.source), ("target", explanation.target)):
        if side is None:
            continue
        say(f"\n{name}    {side.ref} in {side.store}")
        say(f"  accepted  {', '.join(side.accepted)} ({side.because})")
        say(f"  offered   {', '.join(side.offered) or 'nothing'}")
        say(f"  chosen    {side.chosen or 'nothing'}" + (f", {side.via}" if side.via else ""))
        for reason in side.reasons:
            say(f"            {reason}")
    say(f"\nrefused: {explanation.refusal}" if explanation.refusal else f"\nhow: {explanation.how}")


class Follower:
    """Shows progress while a command runs: a bar on a terminal, a line for each phase elsewhere, nothing when quiet."""

    def __init__(self, answer: Json, *, quiet: bool) -> None:
        self._quiet = quiet
        self._phase = ""
        self._name = f"{answer['command']} {answer['id']}"
        self._bar = _Bar.on_a_terminal() if not quiet else None

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, event: Json) -> None:
        progress = event.get("progress") or {"phase": event["state"], "bytes": 0}
        if self._bar is not None:
            self._bar.update(progress)
        elif not self._quiet and progress["phase"] != self._phase:
            say(f"{self._name}: {progress['phase']}", error=True)
        self._phase = progress["phase"]


class _Bar:
    """rich's progress bar, for one phase after the other."""

    @staticmethod
    def on_a_terminal() -> _Bar | None:
        """None where standard error is no terminal, or one that cannot be drawn on."""
        if not sys.stderr.isatty():
            return None
        from rich.console import Console

        console = Console(stderr=True)
        return None if console.is_dumb_terminal else _Bar(console)

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("accepted", total=None, rate="")
        self._progress.start()

    def update(self, progress: Json) -> None:
        rate = progress.get("rate") or 0
        self._progress.update(
            self._task,
            description=progress["phase"],
            completed=progress.get("bytes", 0),
            total=progress.get("total"),
            rate=f"{size(rate)}/s" if rate else "",
        )

    def stop(self) -> None:
        self._progress.stop()


def _progress(progress: Json) -> str:
    total = progress.get("total")
    done = size(progress.get("bytes", 0)) + (f" of {size(total)}" if total else "")
    return f"{progress['phase']}: {done}, {size(progress.get('rate', 0))}/s"


def _took(answer: Json) -> str:
    begin, end = answer.get("started_at") or answer["accepted_at"], answer.get("finished_at")
    return f"{end - begin:.1f} s" if end is not None else ""


def _value(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(key, item)}" for key, item in value.items() if not isinstance(item, dict))
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return size(value) if name in _SIZES and isinstance(value, int) else str(value)
