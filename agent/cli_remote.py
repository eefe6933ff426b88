"""Subcommands that ask a running agent."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from agent.cli_client import Client, Json, Unreachable
from agent.cli_exit import BY_RETRY, Exit, fail, reporting, show_failure
from agent.cli_show import Follower, show_answer, show_answers, show_status

RECONNECT_S = 30.0
"""How long a submission looks for an agent that went away: long enough for a restart, which accounts for the command."""
_PAUSE_S = 0.3


def status(socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        answer = client_of(socket, config).call("GET", "/v1/status")
        if as_json:
            print(json.dumps(answer))
        else:
            show_status(answer)


def submit(file: str, wait: bool, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        body = read_input(file, as_json)
        submit_body(client_of(socket, config), body, wait, as_json)


def submit_body(client: Client, body: bytes, wait: bool, as_json: bool) -> None:
    """Submit a command, show its outcome, and leave with its code. Inside of `reporting`."""
    answer = client.call("POST", "/v1/commands", body=body)
    _finish(_ended(client, answer, as_json) if wait else answer, as_json)


def outcome_of(client: Client, command: Json, as_json: bool) -> Json:
    """The answer of a command that succeeded; one that did not is shown, and left with its code. Inside of `reporting`."""
    answer = _ended(client, client.call("POST", "/v1/commands", body=json.dumps(command).encode()), as_json)
    if answer.get("error") is not None:
        _finish(answer, as_json)
    return answer


def _ended(client: Client, answer: Json, as_json: bool) -> Json:
    if answer["state"] not in ("accepted", "running"):
        return answer
    try:
        return _follow(client, answer, quiet=as_json)
    except KeyboardInterrupt:
        print(f"\ncommand {answer['id']} goes on; storage-agent commands cancel {answer['id']}", file=sys.stderr)
        raise


def list_commands(state: str | None, limit: int, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        answer = client_of(socket, config).call("GET", "/v1/commands", state=state, limit=limit)
        if as_json:
            print(json.dumps(answer))
        else:
            show_answers(answer["commands"])


def show(command_id: str, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        _print(client_of(socket, config).call("GET", f"/v1/commands/{command_id}"), as_json)


def cancel(command_id: str, socket: Path | None, config: Path | None, as_json: bool) -> None:
    with reporting(as_json):
        answer = client_of(socket, config).call("DELETE", f"/v1/commands/{command_id}", timeout_s=None)
        _print(answer, as_json)


def read_input(file: str, as_json: bool) -> bytes:
    """The bytes of the file, or of standard input for `-`. Leaves with the code of wrong usage where there is none."""
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        message = f"{file} cannot be read: {error.strerror}"
        fail({"kind": "Usage", "retryable": "no", "message": message, "details": {}}, as_json, Exit.USAGE)


def client_of(socket: Path | None, config: Path | None) -> Client:
    if socket is None:
        from agent.config_load import load

        socket = load(config).config.api.socket
    return Client(socket)


def _follow(client: Client, answer: Json, *, quiet: bool) -> Json:
    """The final answer. Bridges a restart of the agent: the command's record survives it."""
    command_id = str(answer["id"])
    give_up = time.monotonic() + RECONNECT_S
    final: Json | None = None
    with Follower(answer, quiet=quiet) as follower:
        while final is None:
            try:
                for name, event in client.events(command_id):
                    give_up = time.monotonic() + RECONNECT_S
                    if name == "end":
                        final = event
                    else:
                        follower.update(event)
            except Unreachable as error:
                if time.monotonic() > give_up:
                    raise Unreachable(f"{error.message}; what became of command {command_id} is not known") from error
            if final is None:
                time.sleep(_PAUSE_S)
    return final


def _print(answer: Json, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer))
    else:
        show_answer(answer)


def _finish(answer: Json, as_json: bool) -> None:
    """Show the outcome of a submission, and leave with its code."""
    failure = answer.get("error")
    if as_json:
        print(json.dumps(answer))
    elif failure is None:
        show_answer(answer)
    else:
        print(f"command {answer['id']} {answer['state']}", file=sys.stderr)
        show_failure(failure)
    if failure is not None:
        raise SystemExit(BY_RETRY[failure["retryable"]])
