"""What is written into `other_config`, and what it says."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisors.xen.marks import (
    COPYING,
    IMAGE,
    METADATA,
    OF,
    OURS,
    READY,
    Copying,
    Disk,
    Held,
    Image,
    Ready,
    Sort,
    about_documents,
    all_ready,
    all_writing,
    as_bytes,
    as_text,
    document_key,
    holder,
    is_foreign_disk,
    left_of,
    lock_key,
    lock_keys,
    parsed,
    sort_of,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
marks = st.one_of(
    st.builds(Image, ref=text, token=text, owner=text, id=text),
    st.builds(Ready, seq=st.integers(0), over=st.lists(text, max_size=3).map(tuple)),
    st.builds(
        Copying,
        ref=text,
        token=text,
        owner=text,
        id=text,
        of=text,
        name=text,
        until=st.floats(allow_nan=False, allow_infinity=False),
    ),
    st.builds(Held, owner=text, id=text, until=st.floats(allow_nan=False, allow_infinity=False)),
)

IMAGE_A = Image(ref="a", token="t", owner="agent-1", id="1").text()


def disk(uuid: str = "u1", config: dict[str, str] | None = None, **fields: object) -> Disk:
    given = {"handle": f"OpaqueRef:{uuid}", "uuid": uuid, "name": "a", "virtual_size": 1, "physical_size": 1}
    return Disk(**(given | {"config": config or {}} | fields))  # type: ignore[arg-type]


def ready(uuid: str, seq: int = 1) -> Disk:
    return disk(uuid, {OF: uuid, IMAGE: IMAGE_A, READY: Ready(seq=seq).text()})


def copying(of: str = "u1") -> str:
    return Copying(ref="b", token="t", owner="agent-1", id="1", of=of, name="a", until=1.0).text()


# -------------------------------------------------------------------------------------------------------- codecs


@given(marks)
def test_marks_say_what_was_written(mark: Image | Ready | Copying | Held) -> None:
    assert parsed(type(mark), {"key": mark.text()}, "key") == mark


@given(st.text(max_size=50))
def test_what_others_write_is_no_mark(value: str) -> None:
    for model in (Image, Ready, Copying, Held):
        assert parsed(model, {"key": value}, "key") is None
    assert sort_of(disk(config={OF: "u1", IMAGE: value, READY: value, COPYING: value})) is Sort.FOREIGN


@given(st.one_of(st.binary(max_size=200), st.text(max_size=50).map(lambda text: text.encode(errors="surrogatepass"))))
def test_documents_are_text_that_xml_carries(content: bytes) -> None:
    value = as_text(content)
    assert as_bytes(value) == content
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]", value)


def test_text_stays_readable() -> None:
    assert as_text('{\n "ref": "ä"}'.encode()) == '{\n "ref": "ä"}'
    with pytest.raises(ValueError, match=r"base64|padding|characters"):
        as_bytes("base64:%")


@given(st.dictionaries(st.lists(text, min_size=1, max_size=3).map(tuple), st.sets(st.integers(1, 50), min_size=1)))
def test_documents_have_names_and_versions(documents: dict[tuple[str, ...], set[int]]) -> None:
    config = {document_key(parts, number): str(number) for parts, numbers in documents.items() for number in numbers}
    expected = {parts: {number: str(number) for number in numbers} for parts, numbers in documents.items()}
    assert about_documents(disk(config={OF: "u1", **config, "theirs": "x", f"{OURS}doc:x#y": "z"})) == expected
    for other in ({}, {OF: "u2"}):
        assert about_documents(disk(config={**other, **config})) == {}


# --------------------------------------------------------------------------------------------------------- disks


@pytest.mark.parametrize(
    ("config", "sort"),
    [
        ({}, Sort.FOREIGN),
        ({"theirs": "x"}, Sort.FOREIGN),
        ({IMAGE: IMAGE_A}, Sort.WRITING),
        ({IMAGE: IMAGE_A, OF: "u1"}, Sort.WRITING),
        ({IMAGE: IMAGE_A, OF: "u1", READY: "condemned"}, Sort.WRITING),
        ({IMAGE: IMAGE_A, READY: Ready(seq=1).text()}, Sort.WRITING),
        ({IMAGE: IMAGE_A, OF: "u1", READY: Ready(seq=1).text()}, Sort.READY),
        ({IMAGE: IMAGE_A, OF: "u1", READY: Ready(seq=1).text(), COPYING: copying("u1")}, Sort.READY),
        ({IMAGE: IMAGE_A, OF: "u2", READY: Ready(seq=1).text()}, Sort.FOREIGN),
        ({IMAGE: IMAGE_A, OF: "u2"}, Sort.FOREIGN),
        ({IMAGE: IMAGE_A, OF: "u2", READY: Ready(seq=1).text(), COPYING: copying("u2")}, Sort.COPIED),
        ({COPYING: copying("u2")}, Sort.COPIED),
        ({COPYING: copying("u1")}, Sort.FOREIGN),
        ({OF: "u1"}, Sort.FOREIGN),
    ],
)
def test_disks_are_told_apart(config: dict[str, str], sort: Sort) -> None:
    one = disk(config=config)
    assert sort_of(one) is sort
    assert (left_of(one) is None) == (sort in (Sort.READY, Sort.FOREIGN))
    assert is_foreign_disk(one) == (sort is Sort.FOREIGN)
    assert bool(all_writing("a", [one])) == (sort is Sort.WRITING)
    assert bool(all_ready("a", [one])) == (sort is Sort.READY)
    assert all_ready("b", [one]) == all_writing("b", [one]) == []


def test_copies_that_somebody_uses_are_not_ours() -> None:
    one = disk(config={COPYING: copying("u2")})
    assert left_of(one) is not None
    assert left_of(replace(one, vbds=("OpaqueRef:vbd",))) is None
    assert left_of(replace(one, name="somebody's snapshot")) is None


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(0, 5), min_size=1, max_size=6))
def test_the_last_replacement_counts_for_everybody(seqs: dict[str, int]) -> None:
    disks = [ready(uuid, seq) for uuid, seq in seqs.items()]
    last = all_ready("a", disks)[-1]
    assert (max(seqs.values()), last.uuid) == (seqs[last.uuid], all_ready("a", reversed(disks))[-1].uuid)


def test_what_holds_no_content_is_no_disk() -> None:
    for one in (ready("u1"), disk()):
        for other in (replace(one, type=METADATA), replace(one, usable=False)):
            assert (all_ready("a", [other]), is_foreign_disk(other)) == ([], False)


# --------------------------------------------------------------------------------------------------------- locks


@given(text, st.lists(st.tuples(st.sampled_from("xy"), st.floats(0, 100)), max_size=5))
def test_locks_last_as_long_as_their_holder_renewed_them(ref: str, renewals: list[tuple[str, float]]) -> None:
    config = {lock_key(ref): Held(owner="agent", id="x", until=10.0).text()}
    for number, (holds, until) in enumerate(renewals, 1):
        config[lock_key(ref, number)] = Held(owner="agent", id=holds, until=until).text()
    config[lock_key(ref + "!")] = Held(owner="agent", id="x", until=1000.0).text()
    own = [until for holds, until in renewals if holds == "x"]
    assert holder(ref, config) == Held(owner="agent", id="x", until=max([10.0, *own]))
    assert set(lock_keys({**config, "theirs": "x"})) == set(config)
    del config[lock_key(ref)]
    assert holder(ref, config) is None


def test_a_lock_that_nobody_understands_locks() -> None:
    held = holder("a", {lock_key("a"): "?"})
    assert held is not None
    assert held.until == float("inf")
