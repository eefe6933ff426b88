"""What every route is made of: the table's row, what handlers work with, and how they read a request and write an answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from agent.cache_service import CacheService
from agent.draining import Drain
from agent.explain import Explainer
from agent.failures import invalid
from agent.metrics import Metrics
from agent.outbox import Outbox
from agent.security import Role
from agent.transports.contract import AgentStatus, CommandService
from agent.transports.http_api import events
from agent.transports.http_api.problems import BadRequest, RequestTimeout, UnsupportedMediaType
from agent.upload_service import UploadService

MAX_WAIT_S = 3600.0
MAX_LISTED = 1000

_T = TypeVar("_T")


@dataclass
class Api:
    """What the handlers work with."""

    commands: CommandService
    explain: Explainer
    status: Callable[[], AgentStatus]
    metrics: Metrics
    request_timeout_s: float
    heartbeat_s: float = events.HEARTBEAT_S
    cache: CacheService = field(default_factory=lambda: CacheService(None))
    uploads: UploadService = field(default_factory=UploadService)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the transport stops: whatever waits or streams ends."""

    @property
    def outbox(self) -> Outbox:
        return Outbox(self.uploads, self.commands.under_way)

    @property
    def drain(self) -> Drain:
        return Drain(self.commands, self.uploads)


@dataclass(frozen=True)
class Parameter:
    """A query parameter."""

    name: str
    schema: dict[str, Any]
    description: str


@dataclass(frozen=True, eq=False)
class Route:
    method: str
    path: str
    role: Role
    handler: Callable[[Api, web.Request], Awaitable[web.StreamResponse]]
    summary: str
    answers: dict[int, TypeAdapter[Any] | str]
    """By status: the model, or the media type of what has none."""
    body: TypeAdapter[Any] | None = None
    parameters: tuple[Parameter, ...] = ()


# ------------------------------------------------------------------------------------- reading and writing HTTP


def json_answer(text: str, status: int = 200, **headers: str) -> web.Response:
    return web.json_response(text=text, status=status, headers=headers)


async def body_of(api: Api, request: web.Request, model: TypeAdapter[_T]) -> _T:
    """The body as the model; what arrives too slowly, is too large or not JSON is refused. Depth is bounded by the parser."""
    if request.content_type != "application/json" or "Content-Encoding" in request.headers:
        raise UnsupportedMediaType("the body needs to be application/json, without a content encoding")
    try:
        async with asyncio.timeout(api.request_timeout_s):
            body = await request.read()
    except TimeoutError:
        raise RequestTimeout(
            f"the request body did not arrive within {api.request_timeout_s:g} s", limit_s=api.request_timeout_s
        ) from None
    try:
        return model.validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


async def unless_closing(api: Api, work: Coroutine[Any, Any, _T]) -> _T | None:
    """The result of `work`, or None when the transport stops first."""
    task = asyncio.ensure_future(work)
    closing = asyncio.ensure_future(api.closing.wait())
    try:
        await asyncio.wait({task, closing}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for future in (task, closing):
            future.cancel()
        await asyncio.wait({task, closing})


def wait_of(request: web.Request) -> float:
    text = request.query.get("wait", "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MAX_WAIT_S:
        raise BadRequest(f"wait needs to be a number of seconds from 0 to {MAX_WAIT_S:g}", parameter="wait")
    return seconds


def limit_of(request: web.Request) -> int:
    text = request.query.get("limit", "100")
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_LISTED:
        raise BadRequest(f"limit needs to be a number from 1 to {MAX_LISTED}", parameter="limit")
    return int(text)
