"""Commands and answers as models: what is taken, what is refused, what is shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from agent import commands
from agent.commands import COMMAND, Answer, Failure, Outcome, State, canonical
from agent.execution import request_of
from hypervisors import verbs
from stores.secret import Secret

POOL = {"storeType": "primary", "uuid": "p-1", "poolType": "Filesystem", "path": "/pools/one"}
S3 = {"storeType": "s3", "bucketName": "b", "accessKey": "AKIA", "secretKey": "secret-in-clear"}
TEMPLATE = {"type": "template", "path": "t/1.qcow2", "format": "qcow2", "imageDataStore": S3}
VOLUME = {"type": "volume", "path": "v-1", "dataStore": POOL}
SNAPSHOT = {"type": "snapshot", "path": "v-1/s-1", "dataStore": POOL}
EXAMPLES: dict[str, dict[str, Any]] = {
    "Copy": {"source": TEMPLATE, "destination": VOLUME},
    "CreateObject": {"data": {**VOLUME, "size": 1024}},
    "Delete": {"data": VOLUME},
    "RevertSnapshot": {"data": SNAPSHOT, "dataOnPrimaryStorage": SNAPSHOT},
    "ResizeVolume": {"data": VOLUME, "newSize": 4096},
    "MigrateVolume": {"source": VOLUME, "destination": {**VOLUME, "path": "v-2"}},
    "CreateStoragePool": {"pool": POOL},
    "ModifyStoragePool": {"pool": POOL, "add": True},
    "DeleteStoragePool": {"pool": POOL},
    "ComputeChecksum": {"store": S3, "templatePath": "t/1.qcow2", "algorithm": "SHA256"},
    "GetStorageStats": {"store": POOL},
    "GetVolumeStats": {"pool": POOL, "volumeUuids": ["v-1"]},
    "ListDataStoreObjects": {"store": POOL, "path": "a"},
    "VerifyBackup": {"store": S3, "path": "snapshots/1/s-1"},
    "ListBackups": {"store": S3, "path": "snapshots"},
    "Attach": {"disk": {"type": "ISO", "diskSeq": 3, "data": TEMPLATE}, "vmName": "i-2-7-VM"},
    "Dettach": {"disk": {"type": "ISO", "data": TEMPLATE}, "vmName": "i-2-7-VM"},
    "IntroduceObject": {"data": VOLUME},
    "ForgetObject": {"data": VOLUME},
    "Prefetch": {"data": TEMPLATE},
    "ScrubCache": {"pool": "local", "olderThan": 60.0},
    "ReconcileCache": {},
    "Ping": {},
}


def command(name: str, **fields: Any) -> Any:
    return COMMAND.validate_python({"command": name, **EXAMPLES[name], **fields})


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_command_is_taken_and_shows_no_secret(name: str) -> None:
    taken = COMMAND.validate_json(json.dumps({"command": name, "id": "c-1", "deadline_s": 5, **EXAMPLES[name]}))
    assert taken.command == name
    for text in (taken.model_dump_json(), repr(taken), str(taken.model_dump())):
        assert "secret-in-clear" not in text


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_dump_can_be_read_again(name: str) -> None:
    taken = command(name)
    again = COMMAND.validate_json(taken.model_dump_json(by_alias=True, exclude_none=True))
    assert again.model_dump() == taken.model_dump()


def test_there_is_an_example_of_every_command() -> None:
    tags = COMMAND.json_schema()["discriminator"]["mapping"]
    assert set(tags) == set(EXAMPLES)


@pytest.mark.parametrize("bad", ["", "-a", ".a", "a/b", "a b", "a\n", "ä", "a" * 129, "..", "a\0"])
def test_ids_that_could_not_name_a_file_are_refused(bad: str) -> None:
    with pytest.raises(ValidationError):
        command("Ping", id=bad)


@pytest.mark.parametrize("good", ["a", "A" * 128, "7c1d0b0e-2", "job_1.2"])
def test_ids_that_could_are_taken(good: str) -> None:
    assert command("Ping", id=good).id == good


@pytest.mark.parametrize(
    "fields",
    [
        {"command": "Nope"},
        {"command": "Copy", **EXAMPLES["Copy"], "cache": "always"},
        {"command": "Attach", "vmName": "vm", "disk": {"type": "DATADISK", "data": TEMPLATE}},
        {"command": "Dettach", **EXAMPLES["Dettach"], "waitDetachDevice": -1},
        {"command": "Dettach", "vmName": "vm", "disk": {"type": "ISO", "data": VOLUME}},
        {"command": "Attach", **EXAMPLES["Attach"], "vmName": "a/b"},
        {"command": "ScrubCache", "rate": 0},
        {},
        {"command": "Ping", "deadline": 5},
        {"command": "Ping", "deadline_s": 0},
        {"command": "Ping", "deadline_s": 1e9},
        {"command": "ResizeVolume", "newSize": 1},
        {"command": "ResizeVolume", "newSize": 1, "path": "a"},
        {"command": "ResizeVolume", "newSize": 1, "data": VOLUME, "path": "a", "pool": POOL},
        {"command": "ResizeVolume", "newSize": 1, "data": VOLUME, "path": "a"},
        {"command": "ResizeVolume", "newSize": 0, "data": VOLUME},
        {"command": "ListDataStoreObjects", "store": POOL, "startIndex": -1},
    ],
)
def test_what_is_not_a_command_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        COMMAND.validate_python(fields)


def test_a_refusal_does_not_show_the_input() -> None:
    with pytest.raises(ValidationError) as caught:
        COMMAND.validate_python({"command": "GetStorageStats", "store": {**S3, "bucketName": 5}})
    assert "secret-in-clear" not in str(caught.value)


def test_a_volume_to_resize_is_named_either_way() -> None:
    by_data = command("ResizeVolume")
    by_path = COMMAND.validate_python({"command": "ResizeVolume", "newSize": 4096, "path": "v-1", "pool": POOL})
    assert isinstance(by_data, commands.ResizeVolume)
    assert isinstance(by_path, commands.ResizeVolume)
    assert by_path.volume == by_data.volume


def test_canonical_form_is_equal_for_equal_commands_only() -> None:
    base = canonical(command("Copy", id="a"))
    assert canonical(command("Copy", id="b", deadline_s=7)) == base
    assert canonical(command("Copy", source={**TEMPLATE, "unknown": 1, "name": None})) == base
    assert b"secret-in-clear" in base
    other_secret = {**TEMPLATE, "imageDataStore": {**S3, "secretKey": "another"}}
    assert canonical(command("Copy", source=other_secret)) != base
    assert canonical(command("Copy", source={**TEMPLATE, "path": "t/2.qcow2"})) != base
    pool = {**POOL, "details": {"chap": "x"}}
    assert canonical(command("CreateStoragePool", pool=pool)) != canonical(command("CreateStoragePool"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_command_asks_for_a_verb_except_those_of_the_agent_itself(name: str) -> None:
    assert (request_of(command(name)) is None) == (name in ("Ping", "ScrubCache", "ReconcileCache"))


def test_letting_go_of_a_pool_is_deleting_it() -> None:
    assert isinstance(request_of(command("ModifyStoragePool", add=False)), verbs.DeletePool)
    assert isinstance(request_of(command("ModifyStoragePool", add=True)), verbs.ModifyPool)


def test_answers_leave_out_what_is_absent_and_mask_secrets() -> None:
    data = command("Copy").destination.model_copy(
        update={"dataStore": command("GetStorageStats", store={**POOL, "details": {"k": "secret-in-clear"}}).store}
    )
    answer = Answer.final(
        "c-1",
        "Copy",
        State.SUCCEEDED,
        accepted_at=1.0,
        started_at=2.0,
        finished_at=3.0,
        outcome=Outcome(durability="stored", newData=data),
    )
    told = json.loads(answer.wire())
    assert told == {
        "id": "c-1",
        "command": "Copy",
        "state": "succeeded",
        "result": True,
        "durability": "stored",
        "newData": {
            "type": "volume",
            "path": "v-1",
            "dataStore": {**POOL, "details": {"k": "***"}},
        },
        "accepted_at": 1.0,
        "started_at": 2.0,
        "finished_at": 3.0,
    }
    assert Answer.model_validate_json(answer.wire()).wire() == answer.wire()


def test_an_answer_over_an_nfs_store_can_be_read_again() -> None:
    store = {"storeType": "nfs", "_url": "cifs://h/s?user=u&password=secret-in-clear", "_role": "Image"}
    data = command("Delete", data={**VOLUME, "dataStore": store}).data
    answer = Answer.final(
        "c", "Copy", State.SUCCEEDED, accepted_at=1, started_at=1, finished_at=1, outcome=Outcome(newData=data)
    )
    assert "secret-in-clear" not in answer.wire()
    assert Answer.model_validate_json(answer.wire()).wire() == answer.wire()


def test_states() -> None:
    assert [state for state in State if not state.final] == [State.ACCEPTED, State.RUNNING]


def test_failures_carry_secrets_no_more_than_anything_else() -> None:
    failure = Failure(kind="X", retryable="no", message="m", details={"key": Secret("secret-in-clear")})
    assert "secret-in-clear" not in repr(failure)
