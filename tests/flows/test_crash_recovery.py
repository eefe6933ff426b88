"""kill -9 between any two durable steps of a command: the next start finishes or undoes it, says which, and leaves nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from stores.contract import MiB
from stores.to import ImageFormat
from tests.doubles.disk_images import DiskImages, content_of, make_disk_images, virtual_size
from tests.doubles.mortal import Life, Story, files_in, live

Body = dict[str, Any]
RECORD = ".storage-agent/images/v-1.json"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> DiskImages:
    return make_disk_images(tmp_path_factory.mktemp("images"))


@contextmanager
def life_in_a_new_place(images: DiskImages) -> Iterator[Life]:
    root = Path(tempfile.mkdtemp(prefix="sa-crash-"))
    try:
        life = Life(root, images["raw"].path.parent, [])
        life.pool.mkdir()
        yield life
    finally:
        shutil.rmtree(root)


def volume(life: Life, **fields: object) -> Body:
    pool = {"storeType": "primary", "uuid": "pool", "poolType": "Filesystem", "path": str(life.pool)}
    return {"type": "volume", "path": "v-1", "format": "QCOW2", "dataStore": pool, **fields}


def copy_of(name: str) -> Callable[[Life], Body]:
    def command(life: Life) -> Body:
        store = {"storeType": "image", "uri": f"file://{life.images}"}
        source = {"type": "template", "path": f"disk.{name}", "imageDataStore": store}
        return {"id": "c-1", "command": "Copy", "source": source, "destination": volume(life)}

    return command


def create(life: Life) -> Body:
    return {"id": "c-0", "command": "CreateObject", "data": volume(life, size=4 * MiB)}


def delete(life: Life) -> Body:
    return {"id": "c-1", "command": "Delete", "data": volume(life)}


def resize(life: Life) -> Body:
    return {"id": "c-1", "command": "ResizeVolume", "data": volume(life), "newSize": 8 * MiB}


# ------------------------------------------------------------------------------- what a pool looks like when it is right


def empty(life: Life, images: DiskImages) -> None:
    assert files_in(life.pool) == []


def holds_the_template(life: Life, images: DiskImages) -> None:
    assert files_in(life.pool) == [RECORD, "v-1"]
    assert json.loads((life.pool / RECORD).read_text())["format"] == "QCOW2"
    assert content_of(life.pool / "v-1", ImageFormat.QCOW2) == images["raw"].content


def holds_a_volume_of(size: int) -> Callable[[Life, DiskImages], None]:
    def check(life: Life, images: DiskImages) -> None:
        assert files_in(life.pool) == [RECORD, "v-1"]
        assert virtual_size(life.pool / "v-1", ImageFormat.QCOW2) == size
        assert json.loads((life.pool / RECORD).read_text())["virtual_size"] == size

    return check


@dataclass(frozen=True)
class Scenario:
    command: Callable[[Life], Body]
    done: Callable[[Life, DiskImages], None]
    undone: Callable[[Life, DiskImages], None] = empty
    before: tuple[Callable[[Life], Body], ...] = field(default=())


SCENARIOS = {
    "copy in place": Scenario(copy_of("qcow2"), holds_the_template),
    "copy with conversion": Scenario(copy_of("raw"), holds_the_template),
    "create": Scenario(create, holds_a_volume_of(4 * MiB)),
    "delete": Scenario(delete, empty, holds_a_volume_of(4 * MiB), (create,)),
    "resize": Scenario(resize, holds_a_volume_of(8 * MiB), holds_a_volume_of(4 * MiB), (create,)),
}


def steps_of(scenario: Scenario, images: DiskImages) -> list[str]:
    """The durable steps of a run that nobody disturbs."""
    with life_in_a_new_place(images) as life:
        story = live(replace(life, commands=[make(life) for make in (*scenario.before, scenario.command)]))
        assert story is not None
        assert story.answers[-1]["state"] == "succeeded", story.answers[-1]
        scenario.done(life, images)
        assert nothing_left(life)
        return story.steps


def points(steps: list[str]) -> list[int]:
    """Numbers of the steps to die at: each that leaves something else than the one before it. A killed process loses nothing of
    what it wrote, so the step after an fsync leaves what the fsync did."""
    return [number for number in range(1, len(steps) + 1) if number == 1 or steps[number - 2] != "fsync"]


def die(scenario: Scenario, life: Life, step: int) -> bool:
    bodies = [make(life) for make in (*scenario.before, scenario.command)]
    return live(replace(life, commands=bodies, die_at=step)) is None


def is_accounted_for(scenario: Scenario, life: Life, images: DiskImages) -> Story:
    """The next start knows what became of the command, and the pool shows the same."""
    body = scenario.command(life)
    story = live(replace(life, commands=[body]))
    assert story is not None
    assert story.recovered["not_undone"] == []
    (answer,) = story.answers
    assert answer["state"] in ("succeeded", "interrupted"), answer
    if answer["state"] == "succeeded":
        scenario.done(life, images)
    else:
        assert answer["error"]["kind"] == "Interrupted"
        assert answer["error"]["retryable"] == "yes"
        scenario.undone(life, images)
    assert nothing_left(life)

    interrupted = answer["state"] == "interrupted"
    later = live(replace(life, commands=[body, {**body, "id": "c-2"}] if interrupted else [body]))
    assert later is not None
    assert later.answers[0] == answer
    assert not any(later.recovered.values())
    if interrupted:
        assert later.answers[1]["state"] == "succeeded", later.answers[1]
        scenario.done(life, images)
    return story


def nothing_left(life: Life) -> bool:
    """No socket, no process; what the kernel has still to kill gets a moment. Files are compared by the checks."""
    assert [path for path in (life.root / "run").rglob("*") if not path.is_dir()] == []
    end = time.monotonic() + 20
    while any(str(life.root) in argv for argv in running_tools()):
        assert time.monotonic() < end, "a tool outlived the agent"
        time.sleep(0.01)
    return True


def running_tools() -> Iterator[str]:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(ProcessLookupError, FileNotFoundError):
            yield file.read_text(errors="replace")


@pytest.mark.parametrize("name", SCENARIOS)
def test_death_between_any_two_durable_steps(name: str, images: DiskImages) -> None:
    scenario = SCENARIOS[name]
    steps = steps_of(scenario, images)
    assert len(steps) >= 5
    assert steps[0] == steps[-1] == "journal commit"
    fates = set()
    for step in points(steps):
        with life_in_a_new_place(images) as life:
            died = die(scenario, life, step)
            # Threads take their steps in an order that varies a little, so the last ones may not come again.
            assert died or step > len(steps) - 3, f"step {step} of {steps} was not reached"
            story = is_accounted_for(scenario, life, images)
            fates |= {fate for fate, ids in story.recovered.items() if ids}
    assert fates == {"never_begun", "undone", "finished"}


def test_death_in_the_middle_of_recovery(images: DiskImages) -> None:
    """Recovery that dies is repeated by the next start, from every step of it and for every stage of publication."""
    scenario = SCENARIOS["copy in place"]
    steps = len(steps_of(scenario, images))
    for step in (steps // 2, steps - 4, steps - 1):
        recovery_step = 1
        died = True
        while died:
            with life_in_a_new_place(images) as life:
                if not die(scenario, life, step):
                    break
                died = live(replace(life, die_at=recovery_step, counts="recovery")) is None
                is_accounted_for(scenario, life, images)
            recovery_step += 1
        assert recovery_step > 2
