"""XAPI's three ways of writing a call and its outcome: XML-RPC, JSON-RPC 1.0 and 2.0."""

from __future__ import annotations

import json
import xmlrpc.client
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.parsers.expat import ExpatError

from tests.doubles.xapi.errors import Failure
from tests.doubles.xapi.schema import Moment


class Malformed(Exception):
    """Not a call at all: HTTP 500 with a page in HTML."""


@dataclass(frozen=True)
class Call:
    method: str
    params: list[Any]
    content_type: str
    success: Callable[[Any], bytes]
    failure: Callable[[Failure], bytes]


def parse(path: str, body: bytes, *, json_numbers: bool) -> Call:
    """`json_numbers`: write 64 bit numbers in JSON as numbers, and otherwise as text, which clients have to take too."""
    if path in ("/jsonrpc", "/json"):
        return _json_call(body, json_numbers=json_numbers)
    return _xml_call(body)


def _xml_call(body: bytes) -> Call:
    try:
        params, method = xmlrpc.client.loads(body.decode())
    except (ExpatError, xmlrpc.client.Error, ValueError, KeyError, TypeError) as error:
        raise Malformed(str(error)) from error
    if method is None:
        raise Malformed("this is no methodCall")

    def success(value: Any) -> bytes:
        if method == "system.listMethods":  # the one answer that is not wrapped
            return _xml(value)
        return _xml({"Status": "Success", "Value": value})

    return Call(
        method,
        [_from_xml(value) for value in params],
        "text/xml",
        success,
        lambda failure: _xml({"Status": "Failure", "ErrorDescription": failure.description}),
    )


def _json_call(body: bytes, *, json_numbers: bool) -> Call:
    try:
        told = json.loads(body)
    except ValueError as error:
        raise Malformed(str(error)) from error
    if not isinstance(told, dict) or not isinstance(told.get("method"), str):
        raise Malformed("this is no call")
    number, params = told.get("id"), told.get("params", [])
    if number is None or not isinstance(params, list):
        raise Malformed("a call has an id, and its parameters are a list")
    shaped: Callable[[Any], Any] = (lambda value: value) if json_numbers else _numbers_as_text
    if "jsonrpc" in told:
        base: dict[str, Any] = {"jsonrpc": "2.0", "id": number}
        return Call(
            told["method"],
            params,
            "application/json",
            lambda value: _json({**base, "result": shaped(value)}),
            lambda failure: _json(
                {**base, "error": {"code": 1, "message": failure.code, "data": list(failure.params)}}
            ),
        )
    return Call(
        told["method"],
        params,
        "application/json",
        lambda value: _json({"result": shaped(value), "error": None, "id": number}),
        lambda failure: _json({"result": None, "error": failure.description, "id": number}),
    )


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _numbers_as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _numbers_as_text(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_numbers_as_text(item) for item in value]
    return str(value) if type(value) is int else value


def _xml(value: Any) -> bytes:
    return xmlrpc.client.dumps((_to_xml(value),), methodresponse=True).encode()


def _to_xml(value: Any) -> Any:
    """64 bit numbers are text; dates are dates."""
    if isinstance(value, Moment):
        return xmlrpc.client.DateTime(str(value))
    if isinstance(value, dict):
        return {name: _to_xml(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_to_xml(item) for item in value]
    return str(value) if type(value) is int else value


def _from_xml(value: Any) -> Any:
    if isinstance(value, xmlrpc.client.DateTime):
        return Moment(str(value))
    if isinstance(value, dict):
        return {name: _from_xml(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_from_xml(item) for item in value]
    return value


def result_text(value: Any) -> str:
    """What stands in a task's `result`: XML-RPC's value, whichever way the call came; nothing for no value."""
    if value == "":
        return ""
    text = xmlrpc.client.dumps((_to_xml(value),))
    start, end = text.index("<param>") + len("<param>"), text.rindex("</param>")
    inner = text[start:end].strip()
    return inner.replace("<value><string>", "<value>").replace("</string></value>", "</value>")
