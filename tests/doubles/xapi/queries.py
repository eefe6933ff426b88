"""The language of `get_all_records_where`: `field "type"="user" and not (field "SR"="OpaqueRef:...")`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.doubles.xapi.errors import Failure

Predicate = Callable[[dict[str, Any]], bool]

_TOKENS = re.compile(r"""\s*(?:(?P<word>field|and|or|not|true|false)\b|(?P<text>"[^"]*"|'[^']*')|(?P<sign>[=()]))""")


def parsed(expression: str) -> Predicate:
    """A predicate on records. Anything else than the language: XAPI answers with an internal error."""
    tokens, at = [], 0
    while expression[at:].strip():
        match = _TOKENS.match(expression, at)
        if match is None:
            raise Failure("INTERNAL_ERROR", f"Parse error in expression {expression!r}")
        tokens.append(match.group().strip())
        at = match.end()
    parser = _Parser(tokens, expression)
    predicate = parser.either()
    if parser.tokens:
        raise Failure("INTERNAL_ERROR", f"Parse error in expression {expression!r}")
    return predicate


class _Parser:
    def __init__(self, tokens: list[str], expression: str) -> None:
        self.tokens = tokens
        self._expression = expression

    def either(self) -> Predicate:
        left = self._both()
        while self._take("or"):
            left = _or(left, self._both())
        return left

    def _both(self) -> Predicate:
        left = self._one()
        while self._take("and"):
            left = _and(left, self._one())
        return left

    def _one(self) -> Predicate:
        if self._take("not"):
            inner = self._one()
            return lambda record: not inner(record)
        if self._take("("):
            inner = self.either()
            self._need(")")
            return inner
        if self._take("true"):
            return lambda record: True
        if self._take("false"):
            return lambda record: False
        left = self._value()
        self._need("=")
        right = self._value()
        return lambda record: left(record) == right(record)

    def _value(self) -> Callable[[dict[str, Any]], str]:
        is_field = self._take("field")
        token = self.tokens.pop(0) if self.tokens else ""
        if token[:1] not in ("'", '"'):
            raise Failure("INTERNAL_ERROR", f"Parse error in expression {self._expression!r}")
        text = token[1:-1]
        return (lambda record: _text(record.get(text, ""))) if is_field else (lambda record: text)

    def _take(self, token: str) -> bool:
        if self.tokens[:1] != [token]:
            return False
        del self.tokens[0]
        return True

    def _need(self, token: str) -> None:
        if not self._take(token):
            raise Failure("INTERNAL_ERROR", f"Parse error in expression {self._expression!r}")


def _or(left: Predicate, right: Predicate) -> Predicate:
    return lambda record: left(record) or right(record)


def _and(left: Predicate, right: Predicate) -> Predicate:
    return lambda record: left(record) and right(record)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
