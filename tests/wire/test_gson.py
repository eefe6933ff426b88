"""gson itself, with beans of our own: it reads what we write, and we read what it writes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.transports.cloudstack.json_codec import decode, encode
from tests.wire.golden_messages import NAMES, message, tree

SOURCES = Path(__file__).parents[1] / "doubles" / "java"
GSON = "/usr/share/java/gson.jar"  # Debian: libgoogle-gson-java
ENGLISH = ("-Duser.language=en", "-Duser.country=US")  # gson writes dates as the machine's language has them


def by_gson(classes: Path, messages: list[bytes]) -> list[bytes]:
    """Each message, read into beans and written again, by one JVM."""
    text = b"\n".join(json.dumps(json.loads(one)).encode() for one in messages)
    command = ["java", *ENGLISH, "-XX:TieredStopAtLevel=1", "-cp", f"{GSON}:{classes}", "GsonPeer"]
    return subprocess.run(command, input=text, capture_output=True, check=True, timeout=60).stdout.splitlines()


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gson-peer")
    sources = [str(SOURCES / name) for name in ("GsonPeer.java", "Beans.java")]
    subprocess.run(["javac", "-cp", GSON, "-d", str(directory), *sources], check=True, timeout=60)
    return directory


LENIENT = [
    b'[{"com.cloud.agent.api.Answer":{"unknown":[1,{"x":2}],"wait":"12"}}]',
    b'[{"com.cloud.agent.api.storage.DownloadAnswer":{"downloadStatus":"LATER","templateSize":5.0}}]',
    b'[{"no.such.Class":{}}]',
]


@pytest.fixture(scope="module")
def lines(classes: Path) -> list[bytes]:
    """What gson makes of the golden messages, of what we make of them, and of `LENIENT`. One start of a JVM for all."""
    golden = [json.dumps(tree(name)).encode() for name in NAMES]
    return by_gson(classes, [*golden, *(encode([message(name)]) for name in NAMES), *LENIENT])


@pytest.mark.parametrize("name", NAMES)
def test_gson_and_we_read_each_other(lines: list[bytes], name: str) -> None:
    at = NAMES.index(name)
    golden, ours = lines[at], lines[len(NAMES) + at]
    assert json.loads(golden) == tree(name)  # the golden message is gson's own
    assert decode(golden) == [message(name)]
    assert decode(ours) == [message(name)]
    assert unlike(json.loads(golden), json.loads(ours)) == []


def unlike(golden: Any, ours: Any, path: str = "") -> list[str]:
    """Where gson's bean of our message differs from that of its own; what we leave out on purpose aside."""
    if isinstance(golden, dict) and isinstance(ours, dict):
        return [
            place
            for key in golden.keys() | ours.keys()
            if not (key not in ours and key in ("created", "details"))
            and not (key not in golden and ours[key] in ({}, [], "", False, 0))
            for place in unlike(golden.get(key), ours.get(key), f"{path}/{key}")
        ]
    if isinstance(golden, list) and isinstance(ours, list) and len(golden) == len(ours):
        return [place for one, two in zip(golden, ours, strict=True) for place in unlike(one, two, f"{path}[]")]
    return [] if golden == ours else [f"{path}: {golden!r} and {ours!r}"]


def test_gson_reads_less_strictly_than_we_write(lines: list[bytes]) -> None:
    """Unknown fields and constants are null to it, numbers may be text, and what is absent is false."""
    answer, download, refused = lines[-len(LENIENT) :]
    assert json.loads(answer)[0]["com.cloud.agent.api.Answer"] == {
        "result": False,
        "wait": 12,
        "bypassHostMaintenance": False,
    }
    fields = json.loads(download)[0]["com.cloud.agent.api.storage.DownloadAnswer"]
    assert "downloadStatus" not in fields
    assert fields["templateSize"] == 5
    assert refused.startswith(b"!")
