"""Every fault of the fake pool, at every verb that meets it: it goes well all the same, or fails with the right error.

In both cases nothing is left, what was there is unharmed, and the same command, which is the next one, goes well.

Those that take a test of their own are in `test_xen_fault_switches`, which sees to it that none is forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from stores.contract import MiB
from stores.errors import Retry, StorageError
from tests.doubles.xapi import Remote
from tests.xen_scene import ALIKE, EXPORTING, IMPORTING, ORIGINATOR, VERBS, Scene, State, Verb, furnished, scene

IN_USE = ["OTHER_OPERATION_IN_PROGRESS", "VDI", "OpaqueRef:it", "copy", "OpaqueRef:task"]
FULL = ["SR_BACKEND_FAILURE_44", "", "There is insufficient space", ""]
BROKEN = ["INTERNAL_ERROR", "Not_found"]

Error: TypeAlias = tuple[str, Retry]
UNAVAILABLE: Error = ("Unavailable", Retry.YES)
BUSY: Error = ("XapiBusy", Retry.YES)
LOCKED: Error = ("ImageLocked", Retry.YES)
DAMAGED: Error = ("IntegrityError", Retry.YES)
BROKEN_ERROR: Error = ("XapiFailure", Retry.NO)
REFUSED: Error = ("XapiRefused", Retry.OPERATOR)
NO_ROOM: Error = ("NoSpace", Retry.OPERATOR)

CHANGES = "[!es]*.[!g]*"
"""Calls that change something: all that do not get, but those about sessions and events."""


@dataclass(frozen=True)
class Case:
    """A fault, and the errors that it may end with; whatever is said, the command may also go well."""

    fault: dict[str, Any]
    errors: tuple[Error, ...] = ()

    def __str__(self) -> str:
        return " ".join(str(value) for value in self.fault.values())


def case(where: str, step: str, action: str, *errors: Error, **told: Any) -> Case:
    return Case({"where": where, "step": step, "action": action, **told}, errors)


def _of_a_transfer(where: str) -> Iterator[Case]:
    yield case(where, "head", "drop", UNAVAILABLE)
    yield case(where, "head", "delay", seconds=0.05)
    yield case(where, "head", "http", UNAVAILABLE, status=503)
    yield case(where, "head", "http", status=401)  # with another session it goes well
    yield case(where, "head", "redirect", REFUSED, to="127.0.0.1:1")
    for step, at in (("attach", 0), ("body", 1), ("body", MiB), ("end", 0)):
        told = {"at_byte": at} if step == "body" else {}
        yield case(where, step, "delay", seconds=0.05, **told)
        yield case(where, step, "drop", UNAVAILABLE, BUSY, **told)
        yield case(where, step, "fail", BUSY, **told)
        yield case(where, step, "fail", BROKEN_ERROR, error=BROKEN, **told)
        yield case(where, step, "cancel", BUSY, **told)
        yield case(where, step, "lose-task", UNAVAILABLE, **told)
        if step != "attach":
            yield case(where, step, "silent-end", UNAVAILABLE, DAMAGED, **told)


TRANSFERS = {
    "import": [*_of_a_transfer("import")],
    "export": [*_of_a_transfer("export"), case("export", "body", "false-success", DAMAGED, at_byte=MiB)],
}

HANGS = {
    where: [case(where, step, "hang", UNAVAILABLE, BUSY) for step in ("head", "attach", "body", "end")]
    for where in ("import", "export")
}

COPIES = [
    case("async", "start", "delay", seconds=0.05),
    case("async", "start", "fail", BUSY),
    case("async", "start", "cancel", BUSY),
    case("async", "start", "lose-task", UNAVAILABLE),
]

CALLS = [
    *(case("rpc", "start", action, match="*.get_*") for action in ("drop", "http", "garbage", "lose-session")),
    *(case("rpc", "answer", action, match="*.get_*") for action in ("drop", "http", "garbage", "delay")),
    *(case("rpc", "start", "lose-session", match=CHANGES, skip=skip) for skip in range(4)),
    *(
        case("rpc", "start", "fail", LOCKED, BUSY, match=f"VDI.{method}", error=IN_USE)
        for method in ("create", "snapshot", "clone", "resize", "destroy")
    ),
    *(
        case("rpc", "start", "fail", NO_ROOM, REFUSED, match=f"VDI.{method}", error=FULL)
        for method in ("create", "snapshot", "clone", "resize")
    ),
    case("connect", "start", "drop", UNAVAILABLE),
    case("connect", "start", "delay", seconds=0.05),
]


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Path, Remote]]:
    with furnished() as made:
        yield made


@dataclass
class Walk:
    """One verb, disturbed in one way after the other."""

    here: Scene
    verb: Verb
    before: State
    done: State
    commands: int = 0

    async def meets(self, one: Case) -> bool:
        """Whether the fault was met at all."""
        control = self.here.remote.control
        control("arm", **one.fault)
        self.commands += 1
        error: StorageError | None = None
        try:
            await self.here.run(self.verb.request(self.here), f"c-{self.commands}")
        except StorageError as problem:
            error = problem
        met = bool(control("disarm"))
        if error is not None:
            assert met, f"{one}: {error!r}"
            assert (error.kind, error.retry) in one.errors, f"{one}: {error.kind} {error.retry}: {error.message}"
        if error is not None and self.verb.lasting and self.here.state() != self.before:
            await self.here.run(self.verb.request(self.here), "again")
            error = None
        await self._nothing_left(one, self.done if error is None else self.before)
        if error is None:
            await self.verb.undo(self.here)
        return met

    async def _nothing_left(self, one: Case, wanted: State) -> None:
        """A call that fails is not made again where it was only to clear up: the agent's next start does that."""
        if one.fault["where"] == "rpc" and (self.here.leftovers() or self.here.state() != wanted):
            await self.here.tidied()
        for _ in range(200):
            if not self.here.leftovers():
                break
            await asyncio.sleep(0.01)  # a host that has lost its client is a moment behind
        assert self.here.leftovers() == [], str(one)
        assert self.here.state() == wanted, str(one)


@asynccontextmanager
async def walk(stage: tuple[Path, Remote], name: str, **limits: float) -> AsyncIterator[Walk]:
    """At its end the verb goes well, and no session is left."""
    base, remote = stage
    verb = VERBS[name]
    async with scene(base, remote, **limits) as here:
        before = here.state()
        await here.run(verb.request(here), "c-0")
        done = here.state()
        await verb.undo(here)
        made = Walk(here, verb, before, done)
        yield made
        assert here.state() == before
    left = remote.control("left")
    assert ORIGINATOR not in left["sessions"]


# --------------------------------------------------------------------------------------------------------- transfers


def faults_of(name: str) -> list[Case]:
    """All of them for one verb of each direction. The others' bytes go the same way: each meets every third."""
    where, (first, *others) = ("import", IMPORTING) if name in IMPORTING else ("export", EXPORTING)
    return TRANSFERS[where] if name == first else TRANSFERS[where][others.index(name) :: 3]


@pytest.mark.parametrize("name", [*IMPORTING, *EXPORTING])
async def test_transfers(stage: tuple[Path, Remote], name: str) -> None:
    async with walk(stage, name) as made:
        for one in faults_of(name):
            assert await made.meets(one), str(one)


@pytest.mark.parametrize("name", ["template from qcow2", "incremental backup"])
async def test_transfers_that_hang(stage: tuple[Path, Remote], name: str) -> None:
    async with walk(stage, name, head_timeout_s=1.0, stall_timeout_s=1.0) as made:
        for one in HANGS["import" if name in IMPORTING else "export"]:
            assert await made.meets(one), str(one)


async def test_copies_by_xapi(stage: tuple[Path, Remote]) -> None:
    async with walk(stage, "copy to another sr") as made:
        for one in COPIES:
            assert await made.meets(one), str(one)


# ------------------------------------------------------------------------------------------------------------- calls


@pytest.mark.parametrize("name", [name for name in VERBS if name not in ALIKE])
async def test_calls_that_change_something(stage: tuple[Path, Remote], name: str) -> None:
    """Each of them, in turn refused and with its answer lost."""
    async with walk(stage, name) as made:
        refused, lost = (
            case("rpc", "start", "fail", BROKEN_ERROR, error=BROKEN),
            case("rpc", "answer", "drop", UNAVAILABLE),
        )
        call = 0
        while await made.meets(at_call(call, refused if call % 2 else lost)):
            call += 1
        assert call > 1


def at_call(number: int, one: Case) -> Case:
    """Of those that change something."""
    return replace(one, fault=one.fault | {"match": CHANGES, "skip": number})


@pytest.mark.parametrize("name", ["clone", "resize"])
async def test_calls_of_all_sorts(stage: tuple[Path, Remote], name: str) -> None:
    async with walk(stage, name) as made:
        for one in CALLS:
            await made.meets(one)
