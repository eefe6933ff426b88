"""kill -9 between any two steps of a verb over XenServer's disks: the next process finishes or undoes it, and says which.

Nothing is left, nothing is lost, and the same command goes well: it is the next one that dies, one step later.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hypervisors.contract import HypervisorType
from hypervisors.xen.reconciling import reconcile
from tests.doubles.dying import killed
from tests.doubles.dying_xen import watch
from tests.doubles.xapi import Remote, Settings, process
from tests.xen_scene import ALIKE, VERBS, Scene, State, Verb, furnish, scene

MOST = 60


@dataclass(frozen=True)
class Stage:
    base: Path
    remote: Remote

    def play(self, work: Callable[[Scene], Awaitable[Any]], **changes: Any) -> Any:
        """In a new life of the agent."""

        async def live() -> Any:
            async with scene(self.base, self.remote, **changes) as here:
                return await work(here)

        return asyncio.run(live())

    def dies(self, verb: Verb, token: str, step: int) -> bool:
        async def die(here: Scene) -> None:
            await here.run(verb.request(here), token)

        if not killed(lambda: self.play(die), step, watch):
            return False
        self.remote.control("drop_sessions")
        shutil.rmtree(self.base / "run")  # systemd empties it between two lives
        return True


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    base = Path(tempfile.mkdtemp(prefix="sa-"))  # short: sockets are made in it
    try:
        with process(base / "p", Settings(copy_block_s=0.3)) as remote:
            made = Stage(base, remote)
            made.play(furnish)
            yield made
            assert made.play(leftovers) == []
    finally:
        shutil.rmtree(base)


async def state(here: Scene) -> State:
    return here.state()


async def leftovers(here: Scene) -> list[str]:
    return here.leftovers()


@pytest.mark.parametrize("name", [name for name in VERBS if name not in ALIKE])
def test_death_at_any_step(stage: Stage, name: str) -> None:
    verb = VERBS[name]
    before = stage.play(state)

    async def undisturbed(here: Scene) -> State:
        await here.run(verb.request(here), "c-0")
        done = here.state()
        await verb.undo(here)
        return done

    done = stage.play(undisturbed)
    assert done != before
    assert stage.play(state) == before
    outcomes: list[str] = []
    for step in range(1, MOST):
        token = f"{name.replace(' ', '-')}-{step}"
        if not stage.dies(verb, token, step):
            break
        examine = partial(accounted_for, verb, token, before, done)
        outcomes.append(stage.play(examine, grace_s=0.1))
    assert step < MOST, "no end of steps"
    # The last life was not cut short: whatever died before it was no obstacle.
    assert stage.play(state) == done
    stage.play(verb.undo)
    assert {*outcomes} == {*verb.fates}


async def accounted_for(verb: Verb, token: str, before: State, done: State, here: Scene) -> str:
    """As the agent does it at its start: each command by itself, then what no command knows of."""
    request = verb.request(here)
    recovered = await here.operations.recover(HypervisorType.XEN, request, token)
    assert await here.operations.recover(HypervisorType.XEN, request, token) == recovered
    await reconcile(here.xen)
    assert here.leftovers() + here.stale() == []
    found = here.state()
    assert found == (done if recovered.outcome == "finished" else before) or (verb.elsewhere and found == done)
    if found == done:
        await verb.undo(here)
        assert here.state() == before
    return recovered.outcome
