"""Messages as gson writes them, one file for every command and answer; `tests/wire/test_gson.py` holds gson to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agent.transports.cloudstack.json_codec import Decoded, decode
from agent.transports.cloudstack.models import Envelope

FILES = sorted((Path(__file__).parent / "golden").glob("*.json"))
NAMES = [path.stem for path in FILES]


def text(name: str) -> bytes:
    return (Path(__file__).parent / "golden" / f"{name}.json").read_bytes()


def tree(name: str) -> Any:
    return json.loads(text(name))


def message(name: str) -> Envelope:
    """The one command or answer of that file, decoded."""
    (found,) = decode(text(name))
    assert isinstance(found, Envelope), found
    return found


def only(content: bytes | str | Any) -> Decoded:
    """What a message of one command becomes."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (found,) = decode(raw)
    return found
