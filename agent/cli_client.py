"""The command line's side of the HTTP API: blocking calls over the unix socket, with the standard library alone.

`http.client` imports in a tenth of the time that an asynchronous client takes, and a command line waits for one answer at a
time.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stores.errors import StorageError

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
STREAM_TIMEOUT_S = 60.0  # four heartbeats of the agent

Json = dict[str, Any]


class Unreachable(StorageError):
    """The agent cannot be talked to: it does not run, may not be asked by this user, or went away."""


class Refused(Exception):
    """The agent answered with a failure: the `error` object of the API."""

    def __init__(self, failure: Json) -> None:
        super().__init__(str(failure.get("message", "")))
        self.failure = failure


class Client:
    """One agent, by the path of its socket. Every call is a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
        **query: Any,
    ) -> Json:
        """The JSON of a successful answer. `Refused` with the agent's error, `Unreachable` where there is no answer."""
        with self._request(method, path, body, timeout_s, query) as response:
            text = response.read()
        return _json_of(response.status, text)

    def events(self, command_id: str) -> Iterator[tuple[str, Json]]:
        """Server-sent events of a command, as (name, data). Ends when the agent ends it or the connection breaks, which
        look alike here: only an `end` event says that the command ended. `Unreachable` where it cannot begin."""
        with self._request("GET", f"/v1/commands/{command_id}/events", None, STREAM_TIMEOUT_S, {}) as response:
            if response.status != 200:
                _json_of(response.status, response.read())
            name = ""
            while line := response.readline():
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)

    @contextlib.contextmanager
    def _request(
        self, method: str, path: str, body: bytes | None, timeout_s: float | None, query: Json
    ) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(self._path, timeout_s)
        wanted = {name: value for name, value in query.items() if value is not None}
        target = urllib.parse.quote(path) + (f"?{urllib.parse.urlencode(wanted)}" if wanted else "")
        try:
            connection.request(method, target, body, {"Content-Type": "application/json"} if body is not None else {})
            yield connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(_why(self._path, error), socket=str(self._path)) from error
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("storage-agent")
        self._path = path
        self._answer_timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_TIMEOUT_S)
        self.sock.connect(str(self._path))
        self.sock.settimeout(self._answer_timeout_s)


def _why(path: Path, error: OSError | http.client.HTTPException) -> str:
    match error:
        case FileNotFoundError():
            return f"no agent listens on {path}: is it running? (--socket names another one)"
        case ConnectionRefusedError():
            return f"the agent that listened on {path} is gone: is it running?"
        case PermissionError():
            return f"this user may not talk to the agent on {path}: root and the members of api.group may"
        case TimeoutError():
            return f"the agent on {path} does not answer"
        case http.client.RemoteDisconnected() | ConnectionError():
            return f"the agent on {path} closed the connection before it answered"
        case _:
            return f"cannot talk to the agent on {path}: {error}"


def _json_of(status: int, text: bytes) -> Json:
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Unreachable(f"what listens there is no storage-agent: it answered {status} with something else than JSON")
    # A failed command is an answer with an id; what has only an error is a refused request.
    if status >= 400 and "id" not in answer:
        raise Refused(answer.get("error", {}))
    return answer
