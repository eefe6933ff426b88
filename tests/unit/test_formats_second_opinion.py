"""Disagreement with the format inspector is a refusal: about the format, the size, or whether the image is safe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hypervisors.contract import ImageRefused
from hypervisors.images import second_opinion
from hypervisors.images.parsing import Layout
from stores.contract import MiB
from stores.to import ImageFormat
from tests.hostile_images import HOSTILE
from tests.images import make_qcow2

AGREED = Layout(ImageFormat.QCOW2, "version 3", 4 * MiB)


def check(layout: Layout, data: bytes) -> None:
    second_opinion.check(layout, [data[:512], data[512:]])


def refused(layout: Layout, data: bytes) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        check(layout, data)
    assert caught.value.details["rule"] == "second-opinion"
    return caught.value


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    return make_qcow2(tmp_path / "image", 4 * MiB).read_bytes()


def test_agreement(data: bytes) -> None:
    check(AGREED, data)


def test_another_format(data: bytes) -> None:
    for image_format in set(ImageFormat) & {"RAW", "VHD", "VHDX", "VMDK", "ISO"}:
        assert refused(replace(AGREED, format=ImageFormat(image_format)), data).details["found"] == ["qcow2"]
    refused(AGREED, bytes(64 * 1024))


def test_another_size(data: bytes) -> None:
    assert refused(replace(AGREED, virtual_size=8 * MiB), data).details == {
        "rule": "second-opinion",
        "ours": 8 * MiB,
        "theirs": 4 * MiB,
    }


@pytest.mark.parametrize("name", ["backing file", "data file", "unknown feature", "extended L2", "version 1"])
def test_an_image_that_only_the_inspector_finds_unsafe(tmp_path: Path, name: str) -> None:
    refused(AGREED, HOSTILE[f"qcow2: {name}"].make(tmp_path / "image").read_bytes())


def test_an_inspector_that_breaks(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("a defect")

    monkeypatch.setattr("oslo_utils.imageutils.format_inspector.InspectWrapper._process_chunk", broken)
    assert "IndexError" in refused(AGREED, data).message
