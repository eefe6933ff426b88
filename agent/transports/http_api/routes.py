"""What the API offers: one table of routes, each with the role it needs, what it takes and what it gives."""

from __future__ import annotations

import asyncio

from aiohttp import web
from pydantic import TypeAdapter

from agent.cache_models import EntriesPage, EntryCopies, Evicted, Explained, PoolsShown
from agent.commands import COMMAND, Answer, State
from agent.explain import EXPLAINABLE, EXPLANATION
from agent.failures import Draining, Stopping
from agent.metrics import CONTENT_TYPE
from agent.security import Role
from agent.transports.contract import AgentStatus
from agent.transports.http_api import events, openapi
from agent.transports.http_api.edge import EVENTS_PATH
from agent.transports.http_api.problems import BadRequest, status_of
from agent.transports.http_api.route import (
    MAX_LISTED,
    MAX_WAIT_S,
    Api,
    Parameter,
    Route,
    body_of,
    json_answer,
    limit_of,
    unless_closing,
    wait_of,
)
from agent.transports.http_api.upload_routes import UPLOAD_ROUTES

MAX_REASON = 200


# ------------------------------------------------------------------------------------------------------ handlers


async def submit(api: Api, request: web.Request) -> web.Response:
    wait_s = wait_of(request)
    command = await body_of(api, request, COMMAND)
    answer = await api.commands.submit(command)
    if wait_s and not answer.state.final:
        ended = await unless_closing(api, api.commands.wait(answer.id, wait_s))
        answer = ended or await api.commands.get(answer.id)
    status = 202
    if answer.state.final and wait_s:
        status = 200 if answer.error is None else status_of(answer.error)
    return json_answer(answer.wire(), status, Location=f"/v1/commands/{answer.id}")


async def list_commands(api: Api, request: web.Request) -> web.Response:
    answers = await api.commands.list(state=_state_of(request), limit=limit_of(request))
    return json_answer('{"commands":[' + ",".join(answer.wire() for answer in answers) + "]}")


async def show_command(api: Api, request: web.Request) -> web.Response:
    return json_answer((await api.commands.get(request.match_info["id"])).wire())


async def cancel_command(api: Api, request: web.Request) -> web.Response:
    return json_answer((await api.commands.cancel(request.match_info["id"])).wire())


async def command_events(api: Api, request: web.Request) -> web.StreamResponse:
    with api.metrics.http_streams.track_inprogress():
        return await events.stream(
            request,
            api.commands,
            request.match_info["id"],
            closing=api.closing,
            heartbeat_s=api.heartbeat_s,
            write_timeout_s=api.request_timeout_s,
        )


async def explain(api: Api, request: web.Request) -> web.Response:
    explanation = api.explain(await body_of(api, request, EXPLAINABLE))
    return json_answer(EXPLANATION.dump_json(explanation).decode())


async def status(api: Api, request: web.Request) -> web.Response:
    return json_answer(api.status().model_dump_json())


async def cache_pools(api: Api, request: web.Request) -> web.Response:
    return json_answer(PoolsShown(pools=await api.cache.pools()).model_dump_json(exclude_none=True))


async def cache_entries(api: Api, request: web.Request) -> web.Response:
    after = request.query.get("after", "")
    page = await api.cache.entries(request.match_info["pool"], after=after, limit=limit_of(request))
    return json_answer(page.model_dump_json())


async def cache_entry(api: Api, request: web.Request) -> web.Response:
    return json_answer(EntryCopies(entries=await api.cache.show(request.match_info["key"])).model_dump_json())


async def cache_evict(api: Api, request: web.Request) -> web.Response:
    return json_answer((await api.cache.evict(request.match_info["key"])).model_dump_json())


async def cache_pin(api: Api, request: web.Request) -> web.Response:
    reason = request.query.get("reason", "")
    if len(reason) > MAX_REASON or not reason.isprintable():
        raise BadRequest(f"reason needs to be at most {MAX_REASON} printable characters", parameter="reason")
    entries = await api.cache.pin(request.match_info["key"], reason)
    return json_answer(EntryCopies(entries=entries).model_dump_json())


async def cache_unpin(api: Api, request: web.Request) -> web.Response:
    return json_answer(EntryCopies(entries=await api.cache.unpin(request.match_info["key"])).model_dump_json())


async def cache_explain(api: Api, request: web.Request) -> web.Response:
    wanted = request.query.get("object", "")
    if not wanted:
        raise BadRequest("object needs to be a key, the beginning of one, or a path in a store", parameter="object")
    return json_answer((await api.cache.explain(wanted)).model_dump_json())


async def alive(api: Api, request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def ready(api: Api, request: web.Request) -> web.Response:
    now = api.status()
    if now.draining:
        raise Draining("the agent is being emptied for maintenance")
    if not now.ready:
        why = "is on its way out" if not now.accepting else "cannot write its journal"
        raise Stopping(f"the agent {why}", accepting=now.accepting, journal_usable=now.journal_usable)
    return web.Response(text="ok\n")


async def metrics(api: Api, request: web.Request) -> web.Response:
    return web.Response(body=api.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


async def describe(api: Api, request: web.Request) -> web.Response:
    # Half a second of work the first time: in a thread, so that nothing else waits for it.
    return json_answer(await asyncio.to_thread(openapi.document, ROUTES, api.status().version))


# ---------------------------------------------------------------------------------------------------- the table

_ANSWER = TypeAdapter(Answer)
_WAIT = Parameter(
    "wait",
    {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S, "default": 0},
    "Seconds to wait for the outcome. Then the status is 200, or that of the command's failure; 202 if it still runs.",
)
_STATE = Parameter(
    "state", {"type": "string", "enum": [state.value for state in State]}, "Only commands in this state."
)
_LIMIT = Parameter(
    "limit",
    {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": 100},
    "At most so many, the newest first.",
)

_ENTRIES = Parameter(
    "limit", {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": 100}, "At most so many."
)
_AFTER = Parameter("after", {"type": "string", "default": ""}, "The key to go on after: `next` of the page before.")
_OBJECT = Parameter("object", {"type": "string"}, "A key, the beginning of one, or a path in a store.")
_REASON = Parameter("reason", {"type": "string", "maxLength": MAX_REASON}, "Why it stays, for those who look.")
_COPIES = TypeAdapter(EntryCopies)

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/commands",
        Role.COMMAND,
        submit,
        "Submit a command. It is durable when this answers; the same id again gets the same answer.",
        {202: _ANSWER, 200: _ANSWER},
        body=COMMAND,
        parameters=(_WAIT,),
    ),
    Route(
        "GET",
        "/v1/commands",
        Role.VIEW,
        list_commands,
        "The newest commands.",
        {200: TypeAdapter(dict[str, list[Answer]])},
        parameters=(_STATE, _LIMIT),
    ),
    Route("GET", "/v1/commands/{id}", Role.VIEW, show_command, "One command as it is now.", {200: _ANSWER}),
    Route(
        "DELETE",
        "/v1/commands/{id}",
        Role.OPERATE,
        cancel_command,
        "Cancel a command; answers when nothing of it is left. One that has ended stays as it ended.",
        {200: _ANSWER},
    ),
    Route(
        "GET",
        EVENTS_PATH,
        Role.VIEW,
        command_events,
        "Progress as server-sent events: `progress` with an Event, and at last `end` with the Answer.",
        {200: "text/event-stream"},
    ),
    Route(
        "POST",
        "/v1/explain",
        Role.VIEW,
        explain,
        "What would be done for a Copy, Attach or AttachIso, and why. Runs nothing and contacts nothing.",
        {200: EXPLANATION},
        body=EXPLAINABLE,
    ),
    Route(
        "GET",
        "/v1/cache/pools",
        Role.VIEW,
        cache_pools,
        "The cache's pools with their numbers.",
        {200: TypeAdapter(PoolsShown)},
    ),
    Route(
        "GET",
        "/v1/cache/pools/{pool}/entries",
        Role.VIEW,
        cache_entries,
        "A page of a pool's entries, in the order of their keys.",
        {200: TypeAdapter(EntriesPage)},
        parameters=(_AFTER, _ENTRIES),
    ),
    Route(
        "GET",
        "/v1/cache/explain",
        Role.VIEW,
        cache_explain,
        "Why an object is in the cache, and why it may not go.",
        {200: TypeAdapter(Explained)},
        parameters=(_OBJECT,),
    ),
    Route("GET", "/v1/cache/entries/{key}", Role.VIEW, cache_entry, "One entry, and who pins it.", {200: _COPIES}),
    Route(
        "DELETE",
        "/v1/cache/entries/{key}",
        Role.OPERATE,
        cache_evict,
        "Let an entry go; 409 while it may not.",
        {200: TypeAdapter(Evicted)},
    ),
    Route(
        "PUT",
        "/v1/cache/entries/{key}/pin",
        Role.OPERATE,
        cache_pin,
        "Keep an entry until it is unpinned, over restarts.",
        {200: _COPIES},
        parameters=(_REASON,),
    ),
    Route(
        "DELETE",
        "/v1/cache/entries/{key}/pin",
        Role.OPERATE,
        cache_unpin,
        "Take back an operator's pin, and nobody else's.",
        {200: _COPIES},
    ),
    *UPLOAD_ROUTES,
    Route("GET", "/v1/status", Role.VIEW, status, "The agent at this moment.", {200: TypeAdapter(AgentStatus)}),
    Route("GET", "/healthz", Role.VIEW, alive, "The agent is alive.", {200: "text/plain"}),
    Route("GET", "/readyz", Role.VIEW, ready, "The agent takes commands; otherwise 503.", {200: "text/plain"}),
    Route("GET", "/metrics", Role.VIEW, metrics, "Metrics in the Prometheus text format.", {200: "text/plain"}),
    Route("GET", "/openapi.json", Role.VIEW, describe, "This description.", {200: "application/json"}),
)


def _state_of(request: web.Request) -> State | None:
    text = request.query.get("state")
    if text is None:
        return None
    try:
        return State(text)
    except ValueError:
        raise BadRequest(f"state needs to be one of {', '.join(State)}", parameter="state") from None
