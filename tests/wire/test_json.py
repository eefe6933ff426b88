"""CloudStack's JSON, as gson writes it and as a hostile peer might."""

from __future__ import annotations

import json
import random
import re
import tracemalloc
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.transports.cloudstack.errors import ContentRefused
from agent.transports.cloudstack.json_codec import MAX_VALUES, Refused, Unknown, decode, encode
from agent.transports.cloudstack.models import CLASSES, Envelope, WireAnswer
from agent.transports.cloudstack.models_objects import VolumeMade
from agent.transports.cloudstack.models_pools import GetVolumeStatsCommand, ModifyStoragePoolCommand
from agent.transports.cloudstack.models_storage import CopyCmdAnswer, CopyCommand, RevertSnapshotCommand
from stores.contract import MiB
from stores.secret import MASK, Secret
from stores.to import S3TO, SnapshotObjectTO, TemplateObjectTO, VolumeObjectTO
from tests.wire.golden_messages import NAMES, message, only, text, tree

T = TypeVar("T")
STORAGE = "org.apache.cloudstack.storage.command"
NOT_KEPT = {"created", "details"}
"""Fields that are known to gson's beans and not to us: a date that nobody needs, and details of disks."""
SECRETS = ("s3cr3t", "ch4p", "p%3Dss", "sw1ft-key", "t0k3n", "p4ss", "k3y", "PRIVATE KEY", "p0st")

each_message = pytest.mark.parametrize("name", NAMES)


# ----------------------------------------------------------------------------------------------------- golden messages


def lost(golden: Any, ours: Any, path: str = "") -> list[str]:
    """Where `golden` has something that `ours` has not, or has otherwise."""
    if isinstance(golden, dict) and isinstance(ours, dict):
        found = []
        for key, value in golden.items():
            if key in ours:
                found += lost(value, ours[key], f"{path}/{key}")
            elif key not in NOT_KEPT:
                found.append(f"{path}/{key}")
        return found
    if isinstance(golden, list) and isinstance(ours, list) and len(golden) == len(ours):
        return [place for one, two in zip(golden, ours, strict=True) for place in lost(one, two, f"{path}[]")]
    return [] if golden == ours else [path]


@each_message
def test_what_gson_wrote_is_kept(name: str) -> None:
    ours = encode([message(name)])
    assert lost(tree(name), json.loads(ours)) == []
    assert ours.isascii()
    assert decode(ours) == [message(name)]


def test_every_command_and_answer_has_a_golden_message() -> None:
    assert {message(name).java for name in NAMES} == set(CLASSES)


@each_message
def test_secrets_are_shown_nowhere_but_on_the_wire(name: str) -> None:
    shown = repr(message(name)) + str(message(name)) + message(name).model_dump_json()
    assert [secret for secret in SECRETS if secret in shown] == []


def test_secrets_do_go_onto_the_wire() -> None:
    encoded = encode([message("CopyCommand-backup-to-s3")]).decode()
    assert "s3cr3t/with=signs" in encoded
    assert MASK not in encoded


def test_declared_type_decides_about_wrapping() -> None:
    revert = message("RevertSnapshotCommand")
    assert isinstance(revert, RevertSnapshotCommand)
    assert isinstance(revert.data, SnapshotObjectTO)
    assert isinstance(revert.data.dataStore, S3TO)
    ((_, body),) = json.loads(encode([revert]))[0].items()
    assert "path" in body["data"]
    assert list(body["data"]["dataStore"]) == ["com.cloud.agent.api.to.S3TO"]
    assert "type" not in body["data"]


def test_values_survive_as_they_are() -> None:
    backup, staged = message("CopyCommand-backup-to-s3"), message("CopyCommand-volume-to-cache")
    assert isinstance(backup, CopyCommand)
    assert isinstance(staged, CopyCommand)
    assert backup.options["fullSnapshot"] == Secret("false")
    assert isinstance(backup.destTO, SnapshotObjectTO)
    assert backup.destTO.parents == ["snapshots/2/12/snap-29", "snapshots/2/12/snap-30"]
    assert isinstance(staged.srcTO, VolumeObjectTO)
    assert staged.srcTO.passphrase == Secret("sü1")  # signed bytes of UTF-8
    template = message("CopyCommand-template-to-primary")
    assert isinstance(template, CopyCommand)
    assert isinstance(template.srcTO, TemplateObjectTO)
    assert template.srcTO.displayText == "Debian <12> & ‘more’"  # was escaped


def test_a_success_says_so_and_an_answer_without_it_is_a_failure() -> None:
    assert b'"result":true' in encode([WireAnswer(result=True)])
    assert b'"result":false' in encode([WireAnswer()])
    answer = only([{"com.cloud.agent.api.Answer": {}}])
    assert isinstance(answer, WireAnswer)
    assert not answer.result


def test_new_data_is_wrapped_and_has_no_store() -> None:
    encoded = json.loads(encode([CopyCmdAnswer(result=True, newData=VolumeMade(path="p", size=1))]))
    assert encoded[0][f"{STORAGE}.CopyCmdAnswer"]["newData"] == {
        "org.apache.cloudstack.storage.to.VolumeObjectTO": {"path": "p", "size": 1}
    }


# ----------------------------------------------------------------------------------------------------- tolerance

CLASS_NAME = re.compile(r"(?:com|org)\.[\w.]+")
unknown = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def disturbed(value: Any, chance: random.Random, extra: Any) -> Any:
    """The same fields in another order, with one that nobody knows in every object of a class."""
    if isinstance(value, list):
        return [disturbed(one, chance, extra) for one in value]
    if not isinstance(value, dict):
        return value
    items = []
    for key, one in value.items():
        one = disturbed(one, chance, extra)
        if CLASS_NAME.fullmatch(key) and isinstance(one, dict):
            one["__of a later release"] = extra
        items.append((key, one))
    chance.shuffle(items)
    return dict(items)


@given(name=st.sampled_from(NAMES), chance=st.randoms(use_true_random=False), extra=unknown)
@settings(max_examples=150, deadline=None)
def test_order_and_unknown_fields_do_not_matter(name: str, chance: random.Random, extra: Any) -> None:
    assert only(disturbed(tree(name), chance, extra)) == message(name)


POOL = {"uuid": "p", "poolType": "Filesystem", "path": "/p"}


def copying(**changed: Any) -> Any:
    volume = {"path": "v", "dataStore": {"org.apache.cloudstack.storage.to.PrimaryDataStoreTO": POOL}, **changed}
    wrapped = {"org.apache.cloudstack.storage.to.VolumeObjectTO": volume}
    return [{f"{STORAGE}.CopyCommand": {"srcTO": wrapped, "destTO": wrapped}}]


@pytest.mark.parametrize(
    "changed",
    [
        {"format": "EXTERNAL"},  # constants of other releases are null, as gson has it
        {"provisioningType": "HOLOGRAPHIC"},
        {"format": None, "name": None},
        {"size": "12"},
        {"size": 5.0},
        {"type": "anything"},  # not a field of this class
    ],
)
def test_what_gson_would_read_is_read(changed: dict[str, Any]) -> None:
    found = only(copying(**changed))
    assert isinstance(found, CopyCommand)
    assert found.srcTO.type == "volume"
    assert found.srcTO.format is None


def test_absent_and_null_are_the_same() -> None:
    filer = {"uuid": "p", "type": "Filesystem"}
    name = "com.cloud.agent.api.ModifyStoragePoolCommand"
    bare = only([{name: {"pool": filer}}])
    assert bare == only([{name: {"pool": {**filer, "path": None}, "details": None, "add": None, "wait": None}}])
    assert bare == only([{name: {"pool": filer, "details": {"k": None}}}])
    assert isinstance(bare, ModifyStoragePoolCommand)
    assert not bare.add


def test_a_snapshot_outlives_its_volume() -> None:
    store = {"org.apache.cloudstack.storage.to.PrimaryDataStoreTO": POOL}
    snapshot = {"path": "v/s", "volume": {"path": "v"}, "dataStore": store}
    found = only([{f"{STORAGE}.RevertSnapshotCommand": {"dataOnPrimaryStorage": snapshot}}])
    assert isinstance(found, RevertSnapshotCommand)
    assert found.dataOnPrimaryStorage is not None
    assert found.dataOnPrimaryStorage.volume is None


def test_one_bad_command_costs_only_itself() -> None:
    good = tree("CheckHealthCommand")[0]
    found = decode(
        json.dumps([good, {"no.such.Command": {"a": 1}}, {"a": 1, "b": 2}, *copying(size=[]), good]).encode()
    )
    assert [type(one).__name__ for one in found] == [
        "CheckHealthCommand",
        "Unknown",
        "Refused",
        "Refused",
        "CheckHealthCommand",
    ]
    assert found[1] == Unknown("no.such.Command")


# ----------------------------------------------------------------------------------------------------- hostile peers


def wrapped(java: str) -> dict[str, Any]:
    return {java: {"path": "v"}}


BAD_COMMANDS = {
    "not an object": 5,
    "no class": {},
    "two classes": {"a": {}, "b": {}},
    "fields that are none": {f"{STORAGE}.DeleteCommand": [1]},
    "data that is not wrapped": {f"{STORAGE}.DeleteCommand": {"data": "x"}},
    "an empty wrapper": {f"{STORAGE}.DeleteCommand": {"data": {}}},
    "a class that does not belong there": {f"{STORAGE}.DeleteCommand": {"data": wrapped("java.lang.Runtime")}},
    "a store as data": {f"{STORAGE}.DeleteCommand": {"data": {"com.cloud.agent.api.to.S3TO": {"bucketName": "b"}}}},
    "data without its store": {
        f"{STORAGE}.DeleteCommand": {"data": wrapped("org.apache.cloudstack.storage.to.VolumeObjectTO")}
    },
    "a body that is text": {
        f"{STORAGE}.DeleteCommand": {"data": {"org.apache.cloudstack.storage.to.VolumeObjectTO": "x"}}
    },
    "a number for a list": {"com.cloud.agent.api.GetVolumeStatsCommand": {"volumeUuids": 7, "poolUuid": "p"}},
    "a list for a map": {f"{STORAGE}.CopyCommand": {**copying()[0][f"{STORAGE}.CopyCommand"], "options": []}},
    "a list for a number": copying(size=[1])[0],
    "text for a number": copying(size="many")[0],
    "a constant that is a number": copying(format=7)[0],
    "bytes out of range": copying(passphrase=[300])[0],
    "bytes that are text": copying(passphrase="hunter2")[0],
    "bytes that are no text": copying(passphrase=[-1, -1])[0],
}


@pytest.mark.parametrize("command", BAD_COMMANDS.values(), ids=list(BAD_COMMANDS))
def test_a_command_of_the_wrong_shape_is_refused(command: Any) -> None:
    found = only([command])
    assert isinstance(found, Refused)
    assert found.error.kind == "ContentRefused"
    assert "hunter2" not in found.error.message + str(found.error.details)


@pytest.mark.parametrize(
    "raw",
    [
        b'[{"com.cloud.agent.api.Answer":{"result":true,"result":true}}]',  # gson takes the last: which one is meant?
        b'[{"com.cloud.agent.api.Answer":{"contextMap":{"a":"1","a":"2"}}}]',
        b'[{"com.cloud.agent.api.Answer":{"wait":' + b"9" * 5000 + b"}}]",
        b'[{"com.cloud.agent.api.Answer":{"wait":9223372036854775808}}]',
        b'[{"com.cloud.agent.api.Answer":{"wait":-9223372036854775809}}]',
        b'[{"com.cloud.agent.api.Answer":{"unknown":NaN}}]',
        b'[{"com.cloud.agent.api.Answer":{"wait":1e999}}]',
        b'[{"com.cloud.agent.api.Answer":{"details":"\\ud800"}}]',
    ],
)
def test_what_gson_and_we_might_read_differently_is_refused(raw: bytes) -> None:
    assert isinstance(only(raw), Refused)
    found = decode(raw[:-1] + b"," + encode([WireAnswer(result=True)])[1:])
    assert [type(one).__name__ for one in found] == ["Refused", "WireAnswer"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b'"x"',
        b"[",
        b"[5",
        b"[5,",
        b"[5,]",
        b"[5]x",
        b"[5] [5]",
        b"\xff\xfe",
        b"[\xff]",
        "\ufeff[]".encode(),
        b"[" * 100_000,
        b"[" * 2_000 + b"]" * 2_000,
        b'[{"a":' * 500 + b"1" + b"}]" * 500,
        b"[" + b"0," * MAX_VALUES + b"0]",
        b"[" + b"{}," * MAX_VALUES + b"0]",
    ],
)
def test_text_that_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(ContentRefused):
        decode(raw)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_nothing_else_is_raised_for_any_bytes(raw: bytes) -> None:
    read_or_refuse(raw)


@given(java=st.sampled_from(sorted(CLASSES)), name=st.sampled_from(NAMES), value=unknown, seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_any_value_in_any_place_is_an_answer(java: str, name: str, value: Any, seed: int) -> None:
    """Some field of a good command replaced by anything: read or refused, never a crash."""
    message_tree = tree(name)
    place = message_tree[0]
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 6)):
        key = chance.choice(list(place))
        if not isinstance(place[key], dict) or not place[key]:
            break
        place = place[key]
    place[chance.choice(list(place))] = value
    assert isinstance(only(message_tree), (Envelope, Refused, Unknown))
    assert isinstance(only([{java: value}]), (Envelope, Refused))


def test_empty_messages_have_no_commands() -> None:
    assert decode(b" [ ] \r\n") == []
    assert encode([]) == b"[]"


def test_whitespace_is_allowed_where_json_has_it() -> None:
    assert decode(b"\t[ " + text("CheckHealthCommand").strip()[1:-1] + b" , " + b'{"x":1}\n]') == [
        message("CheckHealthCommand"),
        Unknown("x"),
    ]


# ------------------------------------------------------------------------------------------------------------ memory


def largest() -> bytes:
    """10 MiB of a command that a server could send: as many values as are read, and much text."""
    command = GetVolumeStatsCommand(
        poolUuid="p",
        poolType="Filesystem",
        volumeUuids=tuple(f"{number:036}" for number in range(MAX_VALUES - 1000)),
        contextMap={"text": "x" * (10 * MiB - 40 * MAX_VALUES)},
    )
    return encode([command])


@pytest.mark.parametrize(
    "content",
    [
        largest,
        lambda: b'[{"com.cloud.agent.api.Answer":{"details":"' + b"x" * (10 * MiB) + b'"}}]',
        lambda: b"[" + b",".join([text("CopyCommand-backup-to-s3")] * 600) + b" " * (9 * MiB) + b"]",
        lambda: b"[" + b"[]," * (10 * MiB // 3) + b"0]",
        lambda: b'[{"com.cloud.agent.api.Answer":{"unknown":' + b'{"":{},' * 25_000 + b" " * (10 * MiB),
    ],
    ids=["many volumes", "one text", "many copies", "nothing but brackets", "cut short"],
)
def test_memory_stays_below_three_times_the_text(content: Any) -> None:
    raw = content()
    assert len(raw) > 9 * MiB
    found, reading = measured(lambda: read_or_refuse(raw))
    _, writing = measured(lambda: encode([one for one in found if isinstance(one, Envelope)]))
    assert reading < 3 * len(raw)
    assert writing < 3 * len(raw)


def read_or_refuse(raw: bytes) -> list[Any]:
    try:
        return list(decode(raw))
    except ContentRefused:
        return []


def measured(work: Callable[[], T]) -> tuple[T, int]:
    """What `work` gives, and the most memory that was taken meanwhile."""
    tracemalloc.start()
    try:
        result = work()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
