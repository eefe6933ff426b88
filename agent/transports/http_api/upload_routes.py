"""Routes about what no store has yet: uploads, the events of their end, and emptying the agent."""

from __future__ import annotations

from aiohttp import web
from pydantic import TypeAdapter

from agent.security import Role
from agent.transports.http_api.route import (
    MAX_LISTED,
    MAX_WAIT_S,
    Api,
    Parameter,
    Route,
    json_answer,
    limit_of,
    unless_closing,
    wait_of,
)
from agent.upload_models import Drained, EventsShown, Retried, UploadShown, UploadsShown


async def list_uploads(api: Api, request: web.Request) -> web.Response:
    return json_answer((await api.uploads.uploads()).model_dump_json(exclude_none=True))


async def show_upload(api: Api, request: web.Request) -> web.Response:
    upload, wait_s = request.match_info["id"], wait_of(request)
    ended = await unless_closing(api, api.uploads.wait(upload, wait_s)) if wait_s else None
    return json_answer((ended or await api.uploads.show(upload)).model_dump_json(exclude_none=True))


async def retry_upload(api: Api, request: web.Request) -> web.Response:
    tried = await api.uploads.retry(request.match_info["id"])
    return json_answer(Retried(uploads=tried).model_dump_json())


async def retry_uploads(api: Api, request: web.Request) -> web.Response:
    return json_answer(Retried(uploads=await api.uploads.retry(None)).model_dump_json())


async def cancel_upload(api: Api, request: web.Request) -> web.Response:
    return json_answer((await api.uploads.cancel(request.match_info["id"])).model_dump_json(exclude_none=True))


async def upload_events(api: Api, request: web.Request) -> web.Response:
    waiting = api.outbox.events(limit=limit_of(request), wait_s=wait_of(request))
    found = await unless_closing(api, waiting) or EventsShown(events=[])
    return json_answer(found.model_dump_json(exclude_none=True))


async def acknowledge_event(api: Api, request: web.Request) -> web.Response:
    await api.outbox.acknowledge(request.match_info["id"])
    return json_answer("{}")


async def begin_drain(api: Api, request: web.Request) -> web.Response:
    api.drain.begin()
    return await show_drain(api, request)


async def show_drain(api: Api, request: web.Request) -> web.Response:
    drained = await unless_closing(api, api.drain.status(wait_of(request))) or await api.drain.status(0)
    return json_answer(drained.model_dump_json())


async def end_drain(api: Api, request: web.Request) -> web.Response:
    api.drain.end()
    return json_answer((await api.drain.status(0)).model_dump_json())


def _waits_for(what: str) -> Parameter:
    schema = {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S, "default": 0}
    return Parameter("wait", schema, f"Seconds to wait for {what}.")


_AT_MOST = Parameter(
    "limit", {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": 100}, "At most so many."
)
_UPLOAD, _DRAINED = TypeAdapter(UploadShown), TypeAdapter(Drained)
_RETRIED = TypeAdapter(Retried)
_ALL_STORED = _waits_for("everything to be stored, or for what is left to need an operator")

UPLOAD_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/uploads",
        Role.VIEW,
        list_uploads,
        "Uploads that have not ended, and those whose end nobody has acknowledged.",
        {200: TypeAdapter(UploadsShown)},
    ),
    Route(
        "GET",
        "/v1/uploads/{id}",
        Role.VIEW,
        show_upload,
        "One upload as it is now.",
        {200: _UPLOAD},
        parameters=(_waits_for("its end"),),
    ),
    Route(
        "POST",
        "/v1/uploads/{id}/retry",
        Role.OPERATE,
        retry_upload,
        "Try it now, also where it had failed for good.",
        {200: _RETRIED},
    ),
    Route(
        "POST",
        "/v1/uploads/retry",
        Role.OPERATE,
        retry_uploads,
        "Try all of them now that wait, were refused or failed.",
        {200: _RETRIED},
    ),
    Route(
        "DELETE",
        "/v1/uploads/{id}",
        Role.OPERATE,
        cancel_upload,
        "Give it up: its bytes go from this host, and what the store has of it as well.",
        {200: _UPLOAD},
    ),
    Route(
        "GET",
        "/v1/events",
        Role.VIEW,
        upload_events,
        "Ends of commands that were answered `staged`: the same ones again until they are acknowledged.",
        {200: TypeAdapter(EventsShown)},
        parameters=(_waits_for("the first one"), _AT_MOST),
    ),
    Route(
        "POST",
        "/v1/events/{id}/ack",
        Role.COMMAND,
        acknowledge_event,
        "An event has arrived, and does not come again.",
        {200: TypeAdapter(dict[str, object])},
    ),
    Route(
        "POST",
        "/v1/drain",
        Role.OPERATE,
        begin_drain,
        "Take no new commands, end those that were accepted, and upload what no store has yet.",
        {200: _DRAINED},
        parameters=(_ALL_STORED,),
    ),
    Route(
        "GET",
        "/v1/drain",
        Role.VIEW,
        show_drain,
        "Whether everything is stored, and what is left.",
        {200: _DRAINED},
        parameters=(_ALL_STORED,),
    ),
    Route("DELETE", "/v1/drain", Role.OPERATE, end_drain, "Take commands again.", {200: _DRAINED}),
)
