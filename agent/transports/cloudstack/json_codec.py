"""The JSON text of a message: an array of objects of one key each, the name of a Java class, that holds its fields.

Reading trusts nothing. The size is bounded by whoever took the message off the wire, the number of values here, before any is
built, so that memory stays below three times the text; the depth is bounded by the parser. What is wrong with one command
costs that command only; text that is no such array costs the message. Nothing but `ContentRefused` is raised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import ValidationError

import agent.transports.cloudstack.models_images
import agent.transports.cloudstack.models_pools
import agent.transports.cloudstack.models_session
import agent.transports.cloudstack.models_storage  # noqa: F401  all four: their classes are in CLASSES then
from agent.failures import invalid
from agent.transports.cloudstack.errors import ContentRefused
from agent.transports.cloudstack.json_shape import WrongShape, read, write
from agent.transports.cloudstack.models import CLASSES, Envelope

MAX_VALUES = 65_536
"""Of one message. A command has some hundred; lists of volumes and guests, some thousand."""

_LONG = 1 << 63
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Unknown:
    """A command or answer of a class that is not known here."""

    java: str


@dataclass(frozen=True, slots=True)
class Refused:
    """One command that cannot be understood: its class where that is known, and why."""

    java: str | None
    error: ContentRefused


Decoded: TypeAlias = Envelope | Unknown | Refused


def encode(items: Sequence[Envelope]) -> bytes:
    """Pure ASCII, since the peer reads in the character set of its locale."""
    tree = [{item.java: write(item)} for item in items]
    return json.dumps(tree, separators=(",", ":"), allow_nan=False).encode("ascii")


def decode(content: bytes) -> list[Decoded]:
    """Commands and answers in their order. `ContentRefused` where the text is not such an array, or too much of one."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ContentRefused("a message needs to be text in UTF-8") from None
    return decode_text(text)


def decode_text(text: str) -> list[Decoded]:
    """The same, for whoever does not want to keep the bytes in memory meanwhile."""
    _bounded(text)
    try:
        return _Reader(text).items()
    except RecursionError:
        raise ContentRefused("a message is nested too deeply to be a list of commands") from None
    except ValueError as error:  # its text may quote a secret, its kind does not
        raise ContentRefused(f"a message needs to be a JSON array of commands ({type(error).__name__})") from None


def _bounded(text: str) -> None:
    """Counted high, since what is in strings counts as well. Depth needs no count: the parser has its own limit."""
    values = text.count("[") + text.count("{") + text.count(",")
    if values > MAX_VALUES:
        raise ContentRefused(
            f"a message of {values} values is too large; at most {MAX_VALUES} are read", limit=MAX_VALUES
        )


class _Reader:
    """Reads element after element. `problems` are those of the present one that its tree does not show."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._surrogates = _SURROGATE.search(text) is not None
        self._problems: list[str] = []
        self._json = json.JSONDecoder(
            object_pairs_hook=self._object, parse_int=self._long, parse_constant=self._constant
        )

    def items(self) -> list[Decoded]:
        found: list[Decoded] = []
        at = self._expect(0, "[")
        if self._at(at) != "]":
            while True:
                self._problems.clear()
                element, at = self._json.raw_decode(self._text, at)
                found.append(self._item(element))
                at = self._skip(at)
                if self._at(at) != ",":
                    break
                at = self._skip(at + 1)
        if self._expect(at, "]") != len(self._text):
            raise ValueError
        return found

    def _item(self, element: Any) -> Decoded:
        if not isinstance(element, dict) or len(element) != 1:
            return Refused(None, ContentRefused("a command needs to be an object of one key, the name of its class"))
        ((java, body),) = element.items()
        model = CLASSES.get(java)
        if model is None:
            return Unknown(java[:200])
        if self._surrogates and not _is_text(element):
            self._problems.append("it has half a character")
        if self._problems:
            return Refused(java, ContentRefused(f"a {java} cannot be read: {self._problems[0]}"))
        try:
            if not isinstance(body, dict):
                raise WrongShape("its fields need to be an object")
            return model.model_validate(read(model, body))
        except WrongShape as error:
            return Refused(java, ContentRefused(f"a {java} cannot be read: {error}"))
        except ValidationError as error:
            told = invalid(error)
            return Refused(java, ContentRefused(f"a {java} cannot be read: {told.message}", **told.details))

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            self._problems.append("a key comes twice in one object")
        return found

    def _long(self, digits: str) -> int:
        if len(digits) <= 20 and -_LONG <= (value := int(digits)) < _LONG:
            return value
        self._problems.append("a number does not fit into 64 bits")
        return 0

    def _constant(self, name: str) -> float:
        self._problems.append(f"{name} is not a number")
        return 0.0

    def _skip(self, at: int) -> int:
        space = _SPACE.match(self._text, at)
        return space.end() if space else at

    def _at(self, at: int) -> str:
        return self._text[at : at + 1]

    def _expect(self, at: int, char: str) -> int:
        at = self._skip(at)
        if self._at(at) != char:
            raise ValueError
        return self._skip(at + 1)


def _is_text(element: Any) -> bool:
    """Whether all its strings are Unicode: an escape may name half of a pair, which nothing here could pass on."""
    try:
        json.dumps(element, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
