"""Manifests: one form, which names it; and when a backup may build on another one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisors.backups.manifest import (
    DEEPEST,
    Below,
    BrokenChain,
    Content,
    Manifest,
    digest_of,
    manifest_ref,
    parsed,
    text_of,
)
from hypervisors.backups.sending import why_not
from hypervisors.images.disk_image import CLUSTER
from hypervisors.snapshot_records import Kept, SnapshotRecord
from stores.to import ImageFormat

DIGEST = "ab" * 32


def manifest(**changes: Any) -> Manifest:
    made = Manifest(
        ref="snapshots/v/monday",
        content=Content(ref="snapshots/v/monday", size=1000, sha256=DIGEST, version='"e-tag"'),
        format=ImageFormat.QCOW2,
        virtual_size=1 << 20,
        cluster_size=CLUSTER,
        changed=500,
        volume="v",
        snapshot="monday",
        point="sa-2",
        created=1_700_000_000.25,
    )
    return made.model_copy(update=changes)


def snapshot(**changes: Any) -> SnapshotRecord:
    made = SnapshotRecord(
        volume="v",
        name="tuesday",
        tag="sa-4",
        kept=Kept.INSIDE,
        format=ImageFormat.QCOW2,
        virtual_size=1 << 20,
        physical_size=1,
        token="c-1",
        created=1.0,
        since=("sa-1", "sa-2", "sa-3"),
    )
    return made.model_copy(update=changes)


names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)


@given(
    ref=names,
    size=st.integers(0, 1 << 60),
    created=st.floats(0, 4e9),
    parent=st.none() | names,
    version=st.none() | names,
)
def test_read_back_as_written(ref: str, size: int, created: float, parent: str | None, version: str | None) -> None:
    below = None if parent is None else Below(ref=parent, manifest=DIGEST)
    content = Content(ref=ref, size=size, sha256=DIGEST, version=version)
    made = manifest(ref=ref, content=content, created=created, parent=below)
    text = text_of(made)
    assert parsed(ref, text) == made
    assert digest_of(parsed(ref, text)) == digest_of(made)
    assert made.stands_for(digest_of(made))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + b"\n",
        lambda text: text.replace(b'"size": 1000', b'"size":  1000'),
        lambda text: text.replace(b"1000", b"-1"),
        lambda text: text.replace(b'"manifest": 1', b'"manifest": 2'),
        lambda text: text.replace(b'"depth"', b'"unknown"'),
        lambda text: text.replace(DIGEST.encode(), b"x" * 64),
        lambda text: text[: len(text) // 2],
        lambda text: b"",
        lambda text: b"[]",
        lambda text: b"\xff\xfe",
        lambda text: json.dumps(json.loads(text)).encode(),
    ],
)
def test_nothing_but_what_we_wrote_is_a_manifest(change: Any) -> None:
    with pytest.raises(BrokenChain) as refused:
        parsed("snapshots/v/monday", change(text_of(manifest())))
    assert refused.value.details["ref"] == "snapshots/v/monday"
    assert manifest_ref("snapshots/v/monday") in refused.value.message


def test_a_manifest_belongs_to_its_name() -> None:
    with pytest.raises(BrokenChain, match=r"snapshots/v/monday"):
        parsed("snapshots/v/other", text_of(manifest()))


def test_one_that_stands_in_for_others() -> None:
    before = manifest()
    after = manifest(changed=1, replaces=(digest_of(before),))
    assert after.stands_for(digest_of(before))
    assert not before.stands_for(digest_of(after))


@pytest.mark.parametrize(
    ("parent", "record", "reason"),
    [
        ({}, {}, None),
        ({"point": "sa-3"}, {}, None),
        ({"virtual_size": 1 << 19}, {}, None),  # it grew
        ({"point": "sa-0"}, {}, "not known"),
        ({"point": "sa-4"}, {}, "not known"),
        ({}, {"since": ()}, "not known"),
        ({"virtual_size": 1 << 21}, {}, "larger"),
        ({"ref": "snapshots/w/monday"}, {}, "folder"),
        ({"format": ImageFormat.VHD}, {}, "VHD image"),
        ({"depth": DEEPEST - 1}, {}, None),
        ({"depth": DEEPEST}, {}, "builds on"),
    ],
)
def test_what_keeps_a_backup_from_building_on_another(
    parent: dict[str, Any], record: dict[str, Any], reason: str | None
) -> None:
    found = why_not(manifest(**parent), snapshot(**record), "snapshots/v/tuesday", ImageFormat.QCOW2)
    assert found is None if reason is None else reason in (found or "")
