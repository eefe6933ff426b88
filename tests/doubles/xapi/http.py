"""HTTP as XAPI speaks it, over plain asyncio streams: answers may come before the request's body was read."""

from __future__ import annotations

import asyncio
import base64
import binascii
import socket
import struct
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote, urlsplit

LIMIT = 256 << 10
"""Bytes of a body that are read ahead, about."""


class BadRequest(Exception):
    """What cannot be parsed: 500, as XAPI has it."""


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    path: str
    version: str
    headers: dict[str, str]
    """By lower-case names."""
    query: dict[str, str]
    cookies: dict[str, str]

    @property
    def keep_alive(self) -> bool:
        told = self.headers.get("connection", "").lower()
        return told == "keep-alive" if self.version == "HTTP/1.0" else told != "close"

    @property
    def content_length(self) -> int | None:
        text = self.headers.get("content-length")
        return int(text) if text is not None and text.isdigit() else None

    @property
    def basic(self) -> tuple[str, str] | None:
        """Name and password."""
        scheme, _, value = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            name, _, password = base64.b64decode(value).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return name, password

    def cookie_first(self, name: str) -> str | None:
        return self.cookies.get(name, self.query.get(name))

    def query_first(self, name: str) -> str | None:
        return self.query.get(name, self.cookies.get(name))


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """None: the client has closed the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial.strip():
            raise BadRequest("the request ended early") from error
        return None
    except asyncio.LimitOverrunError as error:
        raise BadRequest("the head of the request has no end") from error
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    parts = first.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise BadRequest(f"{first!r} is not a request")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequest(f"{line!r} is not a header")
        headers[name.strip().lower()] = value.strip()
    target = urlsplit(parts[1])
    cookies = {}
    for pair in headers.get("cookie", "").split(";"):
        name, equals, value = pair.strip().partition("=")
        if equals:
            cookies[name] = unquote(value)
    query = dict(parse_qsl(target.query, keep_blank_values=True))
    return Request(parts[0], parts[1], target.path, parts[2], headers, query, cookies)


def head(status: int, headers: dict[str, str], *, version: str = "1.1") -> bytes:
    lines = [f"HTTP/{version} {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def answer(status: int, body: bytes, content_type: str, *, keep_alive: bool, **headers: str) -> bytes:
    """A whole answer; XAPI's header names are in lower case."""
    told = {
        "content-length": str(len(body)),
        "connection": "keep-alive" if keep_alive else "close",
        "cache-control": "no-cache, no-store",
        "content-type": content_type,
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    return head(status, told) + body


def page(status: int, text: str, **headers: str) -> bytes:
    body = f"<html><body><h1>HTTP {status}</h1>{text}</body></html>".encode()
    return answer(status, body, "text/html", keep_alive=False, **headers)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST rather than FIN."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.family != socket.AF_UNIX and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def stalled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Read nothing for `seconds`, say nothing at all, until the client has gone."""
    loop, raw = asyncio.get_running_loop(), writer.get_extra_info("socket")
    end = loop.time() + seconds
    while loop.time() < end and _is_established(raw):
        await asyncio.sleep(0.02)
    while await reader.read(LIMIT):
        pass


def _is_established(raw: socket.socket) -> bool:
    if raw.fileno() < 0:
        return False
    return raw.family == socket.AF_UNIX or raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x01"
