"""What is wrong with a request before it becomes a command, and the one shape in which every failure is told."""

from __future__ import annotations

from aiohttp import web

from agent.commands import Failure
from agent.failures import AgentError, http_status, tell
from stores.errors import StorageError


class RequestProblem(AgentError):
    """The request cannot be served as it stands."""

    status = 400


class BadRequest(RequestProblem):
    """A query parameter or the body's encoding is not what it has to be."""


class Forbidden(RequestProblem):
    """The caller's role does not allow this."""

    status = 403


class NoSuchRoute(RequestProblem):
    """Nothing has this path."""

    status = 404


class MethodNotAllowed(RequestProblem):
    """The path is known, but not with this method."""

    status = 405


class RequestTimeout(RequestProblem):
    """The request did not arrive in time."""

    status = 408


class BodyTooLarge(RequestProblem):
    """The body is larger than `api.max_body`."""

    status = 413


class UnsupportedMediaType(RequestProblem):
    """Bodies are `application/json`, without a content encoding."""

    status = 415


def problem_of(error: web.HTTPException) -> RequestProblem:
    """What aiohttp itself refuses, as one of ours."""
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = sorted(error.allowed_methods)
            return MethodNotAllowed(f"{error.method} is not allowed here, only {', '.join(allowed)}", allowed=allowed)
        case web.HTTPNotFound():
            return NoSuchRoute("nothing is here; /openapi.json lists what there is")
        case web.HTTPRequestEntityTooLarge():
            return BodyTooLarge("the request body is larger than this agent takes (api.max_body)")
        case _:
            return BadRequest(f"the request is refused: {error.reason}")


def failure_response(error: BaseException) -> web.Response:
    """`{"error": {kind, retryable, message, details}}` with the status of `agent.failures`, or of the problem."""
    told = tell(error)
    status = error.status if isinstance(error, RequestProblem) else told.http_status
    headers = {"Connection": "close"} if status == RequestTimeout.status else None
    return web.json_response(text=error_body(told.failure), status=status, headers=headers)


def error_body(failure: Failure) -> str:
    return f'{{"error":{failure.model_dump_json()}}}'


def status_of(failure: Failure) -> int:
    """The HTTP status for the recorded failure of a command, known by its kind alone."""
    pending: list[type[StorageError]] = [StorageError]
    for cls in pending:
        if cls.__name__ == failure.kind:
            return http_status(cls)
        pending.extend(cls.__subclasses__())
    return 500
